"""Learning-rate schedules as pure functions of the step."""

import math

from fretsaw.training.settings import Schedule


def warmup_then(
    schedule: Schedule, step: int, *, num_steps: int, num_warmup: int, min_ratio: float
) -> float:
    """Return the factor on the peak rate: linear from 1/num_warmup to 1, then as `schedule` says.

    "cosine" and "linear" fall to min_ratio, which the last of `num_steps` has exactly; "constant"
    stays at 1. `step` counts from 0.
    """
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step + 1 - num_warmup) / max(1, num_steps - num_warmup)
    match schedule:
        case "cosine":
            return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - (1 - min_ratio) * progress
        case "constant":
            return 1.0


def rewarm(steps_since: int, num_steps: int) -> float:
    """Return the factor after a fresh optimizer: linear from 1/num_steps to 1 in `num_steps`."""
    return min(1.0, (steps_since + 1) / num_steps)
