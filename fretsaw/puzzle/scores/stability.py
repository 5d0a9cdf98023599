"""Whether more text would change what the search answers: the bootstrap over rows of text."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from fretsaw.model.place import HALVES, Place
from fretsaw.puzzle.search.program import Program
from fretsaw.puzzle.search.rules import FIRST_ATTENTION, taken
from fretsaw.puzzle.search.solutions import search_table
from fretsaw.puzzle.search.table import Alternative, Table

# Of the parent's cost: the targets whose answers are asked for, or the smallest child's.
SHARES = (0.5, 0.65, 0.8)
NUM_RESAMPLES = 20

Scores = list[dict[str, dict[str, Float[np.ndarray, " rows"]]]]  # layer -> half -> name -> rows


def answered(scores: Scores, costs: Mapping[str, float]) -> set[tuple[Place, str]]:
    """Return the alternatives that some answer of the search is made of, at each of `SHARES`."""
    table = _table(scores, costs, None)
    return {
        (Place(i, half), name)
        for limit in _limits(table, costs)
        for i, pair in enumerate(search_table(table, limit)[0].choices)
        for half, name in zip(HALVES, pair, strict=True)
    }


def unsettled(
    scores: Scores, costs: Mapping[str, float], *, seed: int
) -> tuple[set[tuple[Place, str]], float]:
    """Return the alternatives (place, name) that some answer hangs on, and the answers' regret.

    The rows are drawn again with replacement, the same for all alternatives, and the search solved
    for each draw at each of `SHARES` of the parent's cost. The regret of the answer on all rows is
    how much worse than the best it is under a draw, relative to the best; returned is the 95th
    percentile over draws, of the worst target. Of the alternatives with fewer rows the mean stands.
    """
    rng = np.random.default_rng(seed)
    num_rows = max(len(r) for layer in scores for half in layer.values() for r in half.values())
    draws = [rng.integers(num_rows, size=num_rows) for _ in range(NUM_RESAMPLES)]
    tables = [_table(scores, costs, draw) for draw in (None, *draws)]
    needed: set[tuple[Place, str]] = set()
    worst = 0.0
    for limit in _limits(tables[0], costs):
        answers = [search_table(table, limit)[0].choices for table in tables]
        for choices in answers:
            for i, pair in enumerate(choices):
                needed |= {(Place(i, half), name) for half, name in zip(HALVES, pair, strict=True)}
        regrets = []
        for table, best in zip(tables[1:], answers[1:], strict=True):
            least, ours = _total(table, best), _total(table, answers[0])
            regrets.append((ours - least) / max(abs(least), 1e-9) if ours > least else 0.0)
        worst = max(worst, float(np.quantile(regrets, 0.95)))
    return needed, worst


def _limits(table: Table, costs: Mapping[str, float]) -> list[dict[str, float]]:
    """Return the bounds that stand for the targets."""
    smallest = Program.of(taken(table, FIRST_ATTENTION), ["cost"]).smallest("cost")
    parent_cost = sum(costs[next(iter(half))] for layer in table.layers for half in layer.values())
    return [{"cost": max(share * parent_cost, smallest)} for share in SHARES]


def _table(scores: Scores, costs: Mapping[str, float], draw: np.ndarray | None) -> Table:
    def score(rows: np.ndarray) -> float:
        drawn = rows if draw is None or len(rows) <= draw.max() else rows[draw]
        return float(drawn.mean())

    return Table(
        layers=tuple(
            {
                half: {n: Alternative(score(r), {"cost": costs[n]}) for n, r in entries.items()}
                for half, entries in layer.items()
            }
            for layer in scores
        )
    )


def _total(table: Table, choices: tuple) -> float:
    return sum(
        layer[half][name].score
        for layer, pair in zip(table.layers, choices, strict=True)
        for half, name in zip(layer, pair, strict=True)
    )
