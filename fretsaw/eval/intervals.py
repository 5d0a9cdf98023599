"""How far a figure over problems may be trusted."""

import math
from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 2000


def wilson(num_right: float, num_graded: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, by default at 95 %.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); sound at 0 and 1 and for small n.
    """
    assert num_graded > 0, "no grades, so no accuracy"
    assert 0 <= num_right <= num_graded, f"{num_right} right of {num_graded}"
    p, n = num_right / num_graded, num_graded
    center = p + z**2 / (2 * n)
    margin = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((center + sign * margin) / (1 + z**2 / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean, resampling problems."""
    means = np.asarray(values, dtype=np.float64)[_drawn(len(values))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def bootstrap_ratio(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of sum(values) / sum(others), the same problems drawn for both.

    Draws in which the others sum to 0 have no ratio, and are left out.
    """
    drawn = _drawn(len(values))
    sums = np.asarray(others, dtype=np.float64)[drawn].sum(1)
    has_ratio = sums > 0
    assert has_ratio.any(), "the others are all 0, so there is no ratio"
    drawn, sums = drawn[has_ratio], sums[has_ratio]
    ratios = np.asarray(values, dtype=np.float64)[drawn].sum(1) / sums
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def _drawn(num_problems: int) -> np.ndarray:
    return np.random.default_rng(0).integers(num_problems, size=(NUM_RESAMPLES, num_problems))
