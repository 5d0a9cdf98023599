"""How text is drawn from a model: one set of settings, from the command line to the engine.

Standard library only.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of one answer.

    Penalties and filters act in the order of Hugging Face's generation: repetition, presence and
    frequency on the logits, then temperature, top-k, top-p, min-p.
    """

    max_tokens: int = 256
    """Tokens of an answer at most; where the context ends sooner, so does the answer."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Draw from the fewest most probable tokens that reach this share."""
    top_k: int = 0
    """Draw from so many most probable tokens; 0: all."""
    min_p: float = 0.0
    """Leave out tokens below this share of the most probable one."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were seen, in the prompt too, become less probable."""
    presence_penalty: float = 0.0
    """Taken off once from the logits of tokens that were generated."""
    frequency_penalty: float = 0.0
    """Taken off the logits of tokens as often as they were generated."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; within the reasoning they do not count."""
    seed: int = 0
    """Seed of the sampling."""

    def check(self) -> None:
        """Raise ValueError for a setting out of its range; the engine's `Request` asks for it."""
        ranges = {
            "max_tokens": (self.max_tokens >= 0, "at least 0"),
            "temperature": (0 <= self.temperature < math.inf, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0 (0: all tokens)"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "a finite number"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "a finite number"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p < 1, "in [0, 1)"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0 (1: none)"),
        }
        for name, (is_good, rule) in ranges.items():
            if not is_good:
                raise ValueError(f"{name} {getattr(self, name)}: must be {rule}")

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the distribution beyond the model's own doing."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )

    @property
    def has_filters(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0
