"""Settings that every training loop has: how a gradient becomes a step."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """Optimizer, rates and their schedule."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon takes the blocks' matrices (fewer tokens from random weights), AdamW the rest."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    min_lr_ratio: float = 0.1
    """Where the cosine ends, as a fraction of the peak."""
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

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: {self.learning_rate!r}; must be positive")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio: {self.warmup_ratio!r}; lies in 0 to 1")

    def num_warmup(self, num_steps: int) -> int:
        """Return the steps of the warm-up, at least one."""
        return max(1, round(self.warmup_ratio * num_steps))
