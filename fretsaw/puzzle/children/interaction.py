"""What the sum of scores leaves out, learned from a few children whose true KL was measured.

Two changes need not cost the sum of what each costs alone: a later repair makes up for both, or one
breaks what the other relies on. With s_p the score of alternative p, a child c is taken to cost

    y_c = sum_p s_p + sum_p w_p s_p + sum_{p<q} w_pq sqrt(s_p s_q),   p and q in c,

the last as if p and q moved the output by vectors of lengths sqrt(s_p), sqrt(s_q) at some angle.
Children are few, so the w have a Gaussian prior around 0 and what was not measured stays as it was.
That is kernel ridge regression, exact for any number of alternatives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fretsaw.puzzle.search.table import Part

SINGLES, PAIRS = (0.0, 0.1, 0.3, 1.0), (0.0, 0.03, 0.1, 0.3, 1.0)  # prior deviations of w
NOISE = (0.01, 0.03, 0.1, 0.3)  # of y, relative to the sum of scores
FLOOR = 1e-4  # nats; sums below it are all the same


@dataclass(frozen=True)
class Interaction:
    """The terms that were learned, and how good they are on children left out of the fit."""

    singles: Mapping[Part, float]  # to be added to the scores
    pairs: Mapping[tuple[Part, Part], float]
    left_out: Float[np.ndarray, " children"]  # predicted y of each, fitted on the others

    def predict(self, child: Sequence[Part], scores: Mapping[Part, float]) -> float:
        """Return the child's cost with what was learned."""
        total = sum(scores[part] + self.singles.get(part, 0.0) for part in child)
        kept = set(child)
        return total + sum(d for (p, q), d in self.pairs.items() if p in kept and q in kept)


def fit_interaction(
    children: Sequence[Sequence[Part]],
    scores: Mapping[Part, float],
    measured: Float[np.ndarray, " children"],
) -> Interaction:
    """Fit w to the measured children; the priors' widths are those best on children left out.

    With relative noise n, K = sum_p t1^2 s_p^2 + sum_{p<q} t2^2 s_p s_q over what two children
    share, and D = diag(n^2 (sum of scores)^2):  alpha = (K + D)^-1 (y - sum of scores).
    """
    parts = sorted({part for child in children for part in child if scores[part] > 0})
    has = np.array([[part in set(child) for part in parts] for child in children], float)
    value = np.array([scores[part] for part in parts])
    sums = has @ value
    rest = np.asarray(measured) - sums
    shared = (has * value) @ has.T  # sum of s_p over what two children share
    squares = (has * value**2) @ has.T
    pairs = (shared**2 - squares) / 2
    best: tuple[float, np.ndarray, np.ndarray, float, float] | None = None
    for single in SINGLES:
        for pair in PAIRS:
            kernel = single**2 * squares + pair**2 * pairs
            for noise in NOISE:
                inverse = np.linalg.inv(kernel + np.diag((noise * np.maximum(sums, FLOOR)) ** 2))
                alpha = inverse @ rest
                # leave-one-out residuals of kernel ridge: alpha_i / (inverse)_ii
                left_out = np.asarray(measured) - alpha / np.diag(inverse)
                miss = np.log(np.maximum(left_out, FLOOR)) - np.log(np.maximum(measured, FLOOR))
                error = float(np.square(miss).mean())
                if best is None or error < best[0] - 1e-12:
                    best = (error, alpha, left_out, single, pair)
    assert best is not None
    _, alpha, left_out, single, pair = best
    in_children = has.T @ alpha  # sum of alpha over the children that have p
    together = (has.T * alpha) @ has
    return Interaction(
        singles={
            part: float(single**2 * value[i] ** 2 * in_children[i])
            for i, part in enumerate(parts)
            if single
        },
        pairs={
            (parts[i], parts[j]): float(pair**2 * value[i] * value[j] * together[i, j])
            for i in range(len(parts))
            for j in range(i + 1, len(parts))
            if pair and together[i, j]
        },
        left_out=left_out,
    )
