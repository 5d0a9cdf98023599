"""Scores where not all are replayed: estimates, brought to the scale of replay.

The estimate is of second order. The further an alternative moves the output, the more it errs, to
one side in one model and to the other in the next, but hardly in the order. So the replayed
alternatives tell how estimates are read.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from fretsaw.puzzle.scores.scoreboard import Names, Scoreboard

NUM_ANCHORS = 8

Key = tuple[int, Names]


def as_replayed(
    estimates: Float[np.ndarray, " some"],
    known: Sequence[tuple[float, float]],
) -> Float[np.ndarray, " some"]:
    """Return what replay would give for estimates, from `known` pairs of (estimate, replayed).

    log(replayed / estimate) is read between the pairs, of its isotonic fit: it only falls with the
    estimate, or only rises, whichever fits better. Beyond them the nearest one's ratio stands;
    without any the estimate does.
    """
    pairs = np.array([(e, r) for e, r in known if e > 0 and r > 0]).reshape(-1, 2)
    if not len(pairs):
        return estimates
    at, replayed = np.log(pairs[pairs[:, 0].argsort(kind="stable")]).T
    ratios = replayed - at
    fits = [isotonic_regression(ratios, increasing=rises).x for rises in (False, True)]
    fitted = min(fits, key=lambda fit: np.square(fit - ratios).sum())
    is_small = estimates <= 0
    logs = np.log(np.where(is_small, 1.0, estimates))
    return np.where(is_small, estimates, np.exp(logs + np.interp(logs, at, fitted)))


def anchors(board: Scoreboard, most: int = NUM_ANCHORS) -> list[Key]:
    """Return alternatives to replay for the scale: at even steps of the order of the estimates."""
    means = {key: rows["estimate"].mean() for key, rows in board.rows.items() if "estimate" in rows}
    in_order = sorted((key for key in means if means[key] > 0), key=lambda key: means[key])
    places = np.linspace(0, len(in_order) - 1, min(most, len(in_order))).round().astype(int)
    return [in_order[place] for place in places]


def bring_to_scale(board: Scoreboard) -> None:
    """Give what was only estimated its `kl`, read as the replayed of the board tell."""
    means = {key: rows["estimate"].mean() for key, rows in board.rows.items() if "estimate" in rows}
    known = [(means[key], board.rows[key]["kl"].mean()) for key in means if board.is_replayed(key)]
    keys = [key for key in means if not board.is_replayed(key)]
    estimates = np.array([means[key] for key in keys])
    for key, estimate, value in zip(keys, estimates, as_replayed(estimates, known), strict=True):
        factor = value / estimate if estimate > 0 else 1.0
        board.rows[key]["kl"] = board.rows[key]["estimate"] * factor
