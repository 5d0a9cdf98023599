"""Settings of supervised fine-tuning."""

import math
from dataclasses import dataclass, field
from typing import Literal

from fretsaw.stage.settings import check_range
from fretsaw.training.settings import LoraSettings, UpdateSettings

MAX_ROW = 4096
Average = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    """Tune a checkpoint on conversations of both modes, the loss on the answers alone.

    The default rates are those published for the largest Llama-Nemotron (arXiv 2505.00949); small
    networks bear far more.
    """

    source: Literal["files", "world"] = "files"
    """files given as inputs (JSONL or parquet), or generated problems."""
    num_rows: int = 4000
    """With source world: conversations that are generated, half of them of each mode."""
    max_steps: int = 5
    """With source world: steps of arithmetic in a problem at most."""
    max_value: int = 30
    """With source world: the largest value in a problem."""
    weights: tuple[float, ...] = ()
    """Of each data file, how often its rows are seen in an epoch, as `--data a.jsonl:0.3` says: 0.3
    is so many of them, drawn by the seed; () is once each."""
    epochs: int = 1
    """How often every row is seen, times its file's weight."""
    seq_len: int = 0
    """Tokens of one packed row, no conversation may be longer; 0 is the model's context, up to
    4096."""
    too_long: Literal["refuse", "skip"] = "refuse"
    """What becomes of conversations longer than seq_len."""
    batch_tokens: int = 16_384
    """Tokens of one optimizer step, padding included."""
    micro_batch_tokens: int = 4096
    """Tokens of one forward and backward; gradients accumulate to `batch_tokens`."""
    average: Average = "token"
    """What a step's loss is the mean of: all learnt tokens, or the conversations' own means."""
    heldout_share: float = 0.02
    """Share of the conversations, told by their question, that is held out to measure on."""
    heldout_every: int = 0
    """Steps between held-out measurements; 0 is a tenth of all."""
    keep_best: bool = False
    """End with the weights that had the lowest held-out loss, the mean of both modes, and not with
    the last; those at the start count."""
    save_every_s: float = 30.0
    """Seconds between saved states; it never changes the result."""
    update: UpdateSettings = field(
        default_factory=lambda: UpdateSettings(learning_rate=1e-5, warmup_ratio=0.1)
    )
    """Optimizer and rates."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Train factors beside the matrices instead of all weights."""
    saved: Literal["merged", "adapter"] = "merged"
    """What factors become: whole weights, or PEFT's adapter that names the model as its base."""

    def __post_init__(self) -> None:
        check_range(self, 1, "num_rows", "max_steps", "epochs")
        check_range(self, 1, "batch_tokens", "micro_batch_tokens")
        check_range(self, 0, "seq_len", "heldout_every", "save_every_s")
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"heldout_share: {self.heldout_share!r}; lies in 0 to 1, 1 excluded")
        if self.keep_best and not self.heldout_share:
            raise ValueError("keep_best: true, but heldout_share is 0; hold some rows out")
        if self.saved == "adapter" and not self.lora.lora_rank:
            raise ValueError("saved: 'adapter', but lora_rank is 0; give a rank, or 'merged'")
        if any(not 0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights: {self.weights!r}; each is above 0")
        if self.weights and self.source == "world":
            raise ValueError(f"weights: {self.weights!r}, but source is 'world'; name data files")
