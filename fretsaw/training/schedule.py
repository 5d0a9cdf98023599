"""Learning-rate schedules as pure functions of the step."""

import math


def warmup_cosine(step: int, *, num_steps: int, num_warmup: int, min_ratio: float) -> float:
    """Return the factor on the peak rate: linear from 1/num_warmup to 1, then cosine to min_ratio.

    `step` counts from 0; the last step of `num_steps` has min_ratio exactly.
    """
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step + 1 - num_warmup) / max(1, num_steps - num_warmup)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def rewarm(steps_since: int, num_steps: int) -> float:
    """Return the factor after a fresh optimizer: linear from 1/num_steps to 1 in `num_steps`."""
    return min(1.0, (steps_since + 1) / num_steps)
