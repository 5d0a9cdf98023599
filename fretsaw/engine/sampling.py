"""How text is drawn from a model: what a user sets. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of one answer; the engine's `Request` checks their ranges."""

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
    """Above 1, tokens that were seen become less probable."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; within the reasoning they do not count."""
    seed: int = 0
    """Seed of the sampling."""
