"""Settings of training: the loop, distillation from a parent, and pretraining from nothing."""

import bisect
import math
from dataclasses import dataclass, field, fields
from typing import Literal

from fretsaw.training.settings import LoraSettings, SpikeSettings, UpdateSettings


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise ValueError(f"{name}: {value!r}; {rule}")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run at one length of rows, written "seq_len=65536,tokens=5e9,factor=8"."""

    seq_len: int
    tokens: int
    factor: float | None = None  # Llama-3 rotary scaling from here on
    theta: float | None = None  # another base of the rotary frequencies from here on
    fresh: bool = False  # begin with a fresh optimizer

    @classmethod
    def parse(cls, text: str) -> "Phase":
        """Read `key=value` pairs joined by commas; counts may be written as 5e9."""
        known = {field.name for field in fields(cls)}
        given: dict[str, str] = {}
        for part in text.split(","):
            key, _, value = part.strip().partition("=")
            if key not in known or not value:
                raise ValueError(
                    f"lengths: {text!r}; write seq_len=N,tokens=N and, where wanted, factor=X, "
                    "theta=X, fresh=true"
                )
            given[key] = value
        if "seq_len" not in given or "tokens" not in given:
            raise ValueError(f"lengths: {text!r}; a phase needs seq_len and tokens")
        fresh = given.get("fresh", "false").lower()
        if fresh not in ("true", "false"):
            raise ValueError(f"lengths: {text!r}; fresh is true or false")
        try:
            numbers = {key: float(value) for key, value in given.items() if key != "fresh"}
        except ValueError as error:
            raise ValueError(f"lengths: {text!r}; {error}") from error
        if not all(math.isfinite(number) for number in numbers.values()):
            raise ValueError(f"lengths: {text!r}; every number is finite")
        return cls(
            seq_len=int(numbers["seq_len"]),
            tokens=int(numbers["tokens"]),
            factor=numbers.get("factor"),
            theta=numbers.get("theta"),
            fresh=fresh == "true",
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training loop."""

    tokens: int = 2_000_000
    """Tokens to train on; the number of steps follows from it."""
    lengths: tuple[str, ...] = ()
    """Longer rows to go on with afterwards, such as "seq_len=65536,tokens=5e9,factor=8"."""
    batch_tokens: int = 4096
    """Tokens of one optimizer step."""
    micro_batch_tokens: int = 4096
    """Tokens of one forward and backward of a process; gradients accumulate to `batch_tokens`."""
    seq_len: int = 256
    """Tokens of one row."""
    update: UpdateSettings = field(default_factory=UpdateSettings)
    """Optimizer and rates."""
    heldout_tokens: int = 16_384
    """Tokens of every held-out measurement."""
    heldout_every: int = 0
    """Steps between held-out measurements; 0 is a tenth of all."""
    save_every_s: float = 30.0
    """Seconds between saved states; it never changes the result."""
    compile: bool = False
    """Compile the blocks with torch.compile (needs a C++ compiler on CPU)."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass, which runs the block again."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Train factors beside the matrices instead of all weights."""
    spikes: SpikeSettings = field(default_factory=SpikeSettings)
    """What to do when the loss jumps."""

    def __post_init__(self) -> None:
        micro, batch = self.micro_batch_tokens, self.batch_tokens
        for phase in self.phases:
            _require(phase.seq_len >= 2, "seq_len", phase.seq_len, "a row needs at least 2 tokens")
            _require(
                micro >= phase.seq_len and micro % phase.seq_len == 0,
                "micro_batch_tokens",
                micro,
                f"must be a multiple of seq_len {phase.seq_len}",
            )
        _require(
            batch >= micro and batch % micro == 0,
            "batch_tokens",
            batch,
            f"must be a multiple of micro_batch_tokens {micro}",
        )
        for phase in self.phases:
            _require(
                phase.tokens >= batch,
                "tokens",
                phase.tokens,
                f"must be at least batch_tokens {batch}",
            )
            for name in ("factor", "theta"):
                value = getattr(phase, name)
                _require(value is None or value >= 1, f"lengths: {name}", value, "is at least 1")
        _require(self.heldout_every >= 0, "heldout_every", self.heldout_every, "is 0 or more")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The parts of the run in order: `tokens` of `seq_len` first, then `lengths`."""
        first = Phase(seq_len=self.seq_len, tokens=self.tokens)
        return (first, *map(Phase.parse, self.lengths))

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """The steps at which the phases end."""
        ends, done = [], 0
        for phase in self.phases:
            done += phase.tokens // self.batch_tokens
            ends.append(done)
        return tuple(ends)

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """The steps after which the phases begin."""
        return (0, *self.phase_ends[:-1])

    def phase_at(self, done: int) -> int:
        """Return the index of the phase that the run is in after `done` steps."""
        return bisect.bisect_right(self.phase_ends, done)

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return self.phase_ends[-1]

    @property
    def heldout_interval(self) -> int:
        """Steps between held-out measurements."""
        return self.heldout_every or max(1, self.num_steps // 10)


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Train a child to agree with its parent (Puzzle's choice: cosine + KL, no LM loss)."""

    kl_weight: float = 1.0
    """Weight of KL(parent || child) on the next-token distributions."""
    cosine_weight: float = 1.0
    """Weight of 1 - cos between hidden states, summed over the layers."""
    lm_weight: float = 0.0
    """Weight of the next-token cross-entropy on the text."""
    teacher_dtype: Literal["fp32", "bf16"] = "fp32"
    """How the parent's weights are held."""
    keep_best: bool = True
    """Keep the weights with the best held-out figure, those at the start included."""
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(update=UpdateSettings(learning_rate=5e-4))
    )
    """The loop."""

    def __post_init__(self) -> None:
        weights = (self.kl_weight, self.cosine_weight, self.lm_weight)
        _require(min(weights) >= 0, "loss weights", weights, "must not be negative")
        _require(max(weights) > 0, "loss weights", weights, "at least one must be positive")

    @property
    def needs_teacher(self) -> bool:
        """Whether the parent is needed at all."""
        return self.kl_weight > 0 or self.cosine_weight > 0


@dataclass(frozen=True, kw_only=True)
class TeachSettings:
    """Write what the parent says of the text that distillation will read."""

    tokens: int = 2_000_000
    """Tokens of the distillation that is to read it, with the same seed."""
    seq_len: int = 256
    """Tokens of one row; the same as in distillation."""
    top_k: int = 64
    """Tokens whose log-probabilities are kept; all others go into one figure."""
    heldout_tokens: int = 16_384
    """Held-out tokens, of which distillation measures no more than that."""
    micro_batch_tokens: int = 4096
    """Tokens of one forward."""
    shard_tokens: int = 1_000_000
    """Tokens of one file; an interrupted run goes on at the file it was at."""

    def __post_init__(self) -> None:
        _require(self.seq_len >= 2, "seq_len", self.seq_len, "a row needs at least 2 tokens")
        _require(self.top_k >= 1, "top_k", self.top_k, "must be at least 1")
        for name in ("tokens", "heldout_tokens", "micro_batch_tokens", "shard_tokens"):
            value = getattr(self, name)
            _require(value >= self.seq_len, name, value, f"must hold a row of {self.seq_len}")


@dataclass(frozen=True, kw_only=True)
class CptSettings:
    """Go on pretraining a checkpoint on text (the next-token loss alone)."""

    keep_best: bool = True
    """Keep the weights with the best held-out loss, those at the start included."""
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(update=UpdateSettings(learning_rate=1e-4))
    )
    """The loop."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Train a Llama from random weights on a corpus, with the corpus's tokenizer."""

    num_hidden_layers: int = 8
    """Layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_attention_heads: int = 8
    """Query heads; each has hidden_size / num_attention_heads dimensions."""
    num_key_value_heads: int = 4
    """Key-value heads."""
    intermediate_size: int = 384
    """FFN width."""
    tie_word_embeddings: bool = True
    """Use the embedding table as the output matrix."""
    max_position_embeddings: int = 1024
    """Longest context the checkpoint states."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """The loop."""

    def __post_init__(self) -> None:
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "hidden_size",
            self.hidden_size,
            f"must be a multiple of num_attention_heads {self.num_attention_heads}",
        )
