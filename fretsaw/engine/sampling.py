"""How text is drawn from a model: one set of settings, from the command line to the engine.

Every number has bounds that the draws can compute with in float32. Standard library only.
"""

from dataclasses import dataclass
from numbers import Integral, Real

MAX_INTEGER = 2**63 - 1  # what tensors, and the engine's other process, can hold
MAX_TEMPERATURE = 1_000.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
MAX_PENALTY = 1_000.0  # of presence and frequency, either way
MIN_SEED, MAX_SEED = -(2**127), 2**127 - 1  # taken modulo 2**64

_PENALTY = (Real, -MAX_PENALTY, MAX_PENALTY, f"from {-MAX_PENALTY:g} to {MAX_PENALTY:g}")
_REPETITION = (
    Real,
    MIN_REPETITION_PENALTY,
    MAX_REPETITION_PENALTY,
    f"from {MIN_REPETITION_PENALTY:g} to {MAX_REPETITION_PENALTY:g} (1: none)",
)
# setting -> its kind, its lowest and highest value, and how that is said
_RANGES = {
    "max_tokens": (Integral, 0, MAX_INTEGER, f"a whole number, at least 0, at most {MAX_INTEGER}"),
    "temperature": (Real, 0, MAX_TEMPERATURE, f"at least 0, at most {MAX_TEMPERATURE:g}"),
    "top_k": (Integral, 0, MAX_INTEGER, f"at least 0 (0: all tokens), at most {MAX_INTEGER}"),
    "top_p": (Real, 0, 1, "in (0, 1]"),
    "min_p": (Real, 0, 1, "in [0, 1)"),
    "repetition_penalty": _REPETITION,
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "seed": (Integral, MIN_SEED, MAX_SEED, "a whole number of at most 128 bits"),
}


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
        for name, (kind, low, high, rule) in _RANGES.items():
            value = getattr(self, name)
            is_number = isinstance(value, kind) and not isinstance(value, bool)
            if not (is_number and low <= value <= high):
                raise ValueError(f"{name} {value!r:.40}: must be {rule}")
        # Of these one end is not in the range.
        for name, is_good in (("top_p", self.top_p > 0), ("min_p", self.min_p < 1)):
            if not is_good:
                raise ValueError(f"{name} {getattr(self, name)}: must be {_RANGES[name][3]}")

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
