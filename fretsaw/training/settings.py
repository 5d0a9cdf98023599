"""Settings that every training loop has: how a gradient becomes a step."""

from dataclasses import dataclass
from typing import Literal

from fretsaw.stage.settings import check_positive, check_range

MAX_LOGITS = 1 << 25  # elements of one chunk of logits: 128 MiB in float32
MOMENT_BLOCK = 128  # elements of a row that share one 8-bit scale
MOMENT_SLICE = 1 << 24  # elements updated at once: 64 MiB for each float32 copy
Schedule = Literal["cosine", "linear", "constant"]
SMALL_PARAMETER = 4096  # up to this size, norms above all, moments stay float32


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """Optimizer, rates and their schedule."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon takes the blocks' matrices (fewer tokens from random weights), AdamW the rest."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    schedule: Schedule = "cosine"
    """How the rates go on after the warm-up: down along a cosine or a line, or not at all."""
    min_lr_ratio: float = 0.1
    """Where cosine and line end, as a fraction of the peak."""
    warmup_ratio: float = 0.05
    """Fraction of the steps spent warming up."""
    weight_decay: float = 0.1
    """Decay of matrices; norms have none."""
    beta1: float = 0.9
    """AdamW's first moment."""
    beta2: float = 0.95
    """AdamW's second moment."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    states: Literal["fp32", "bf16", "int8"] = "fp32"
    """How AdamW's two moments are kept: 8, 4 or about 2 bytes a parameter."""
    master: Literal["fp32", "bf16"] = "fp32"
    """How the trained weights are kept; bf16 has no copy beside it and rounds at random."""
    offload: bool = False
    """Keep the moments in the host's memory."""

    def __post_init__(self) -> None:
        check_positive(self, "learning_rate", "muon_learning_rate")
        if not self.grad_clip > 0:  # infinity clips nothing
            raise ValueError(f"grad_clip: {self.grad_clip!r}; must be positive")
        check_range(self, 0, "min_lr_ratio", "warmup_ratio", most=1)
        check_range(self, 0, "weight_decay")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)!r}; lies in 0 to 1, 1 excluded")
        if self.is_lean and self.optimizer == "muon":
            raise ValueError(
                f"optimizer: 'muon' with states {self.states!r}, master {self.master!r}, offload "
                f"{self.offload!r}; Muon keeps fp32 on the device, take adamw"
            )

    @property
    def is_lean(self) -> bool:
        """Whether anything of AdamW is kept other than in fp32 on the device."""
        return self.states != "fp32" or self.master != "fp32" or self.offload

    def num_warmup(self, num_steps: int) -> int:
        """Return the steps of the warm-up, at least one."""
        return max(1, round(self.warmup_ratio * num_steps))


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Train small factors beside frozen matrices instead of the weights (arXiv 2106.09685)."""

    lora_rank: int = 0
    """Rank of the factors; 0 trains all weights."""
    lora_alpha: float = 32.0
    """The factors' product counts alpha / rank times."""
    lora_matrices: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "linear_attn",
        "linear_mlp",
    )
    """The matrices that get factors, by the last part of their names."""

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank: {self.lora_rank!r}; is 0 (all weights) or more")
        if self.lora_rank and not self.lora_matrices:
            raise ValueError("lora_matrices: none, so nothing would be trained; name some")


@dataclass(frozen=True, kw_only=True)
class SpikeSettings:
    """Go back when the loss or the gradient jumps, and on with other batches."""

    max_rollbacks: int = 0
    """How often a run may go back; 0 never does, and a gradient that is not finite ends it."""
    spike_mads: float = 30.0
    """A spike is above the median by this many median absolute deviations."""
    spike_window: int = 64
    """Steps that median and deviation are taken over; half of them must have passed."""
    snapshot_every: int = 50
    """Steps between the weights that can be gone back to; a rollback takes the last but one."""
    rewarm_steps: int = 10
    """Steps over which the rate rises again after a fresh optimizer."""

    def __post_init__(self) -> None:
        for name, least in (
            ("max_rollbacks", 0),
            ("spike_window", 4),
            ("snapshot_every", 1),
            ("rewarm_steps", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)!r}; is at least {least}")
        if not self.spike_mads > 0:
            raise ValueError(f"spike_mads: {self.spike_mads!r}; must be positive")
