"""A search's program solved with HiGHS to a gap of 0, and each answer checked in plain arithmetic.

Layers with equal entries share integer variables, so 80 equal layers are no harder than one. A pair
of choices in two layers is a column y of its own: y <= x1, y <= x2, y >= x1 + x2 - 1.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from fretsaw.puzzle.search.program import RELATIVE_NOISE, Pick, Program

MAX_REJECTED = 50
TIME_LIMIT_S = 60.0


def solve(
    program: Program,
    limits: Mapping[str, float],
    *,
    objective: Sequence[np.ndarray] | None = None,
    found: Sequence[Pick] = (),
    min_difference: int = 1,
    time_limit_s: float = TIME_LIMIT_S,
    gap: float = 0.0,
) -> tuple[Pick, bool] | None:
    """Return the best pick that fits and differs from those `found`, and whether it is proved best.

    Least is the score, or `objective`: an array of values per decision; to a relative `gap` of the
    least that there can be, above it. None where no pick fits. A
    pick that HiGHS's tolerances let through and plain arithmetic does not is excluded by a cut of
    its own and the program solved again, so the answer stays exact.
    """
    rejected: list[Pick] = []
    while len(rejected) < MAX_REJECTED:
        rows = _Rows(program, share=not (found or rejected))
        for name, limit in limits.items():
            bound = limit + RELATIVE_NOISE * abs(limit) - program.fixed[name]
            rows.limit([decision.costs[name] for decision in program.decisions], bound)
        for pick in found:
            rows.differ(pick[: len(program.decisions) - len(program.links)], min_difference)
        for pick in rejected:
            rows.differ(pick, 1)
        if objective is None:
            rows.weigh([decision.scores for decision in program.decisions])
            rows.add_terms(program)
        else:
            rows.weigh(objective)
        answer = rows.minimise(time_limit_s, gap)
        if answer is None or program.fits(answer[0], limits):
            return answer
        rejected.append(answer[0])
    raise ValueError(
        f"search: {MAX_REJECTED} children miss a limit by rounding alone; move the limits a bit: "
        + ", ".join(f"{name}={limit!r}" for name, limit in limits.items())
    )


def solve_nearest(
    program: Program, limits: Mapping[str, float], time_limit_s: float = TIME_LIMIT_S
) -> Pick | None:
    """Return the pick that needs the least factor by which all limits are raised alike."""
    rows = _Rows(program, share=True)
    factor = rows.add_column(weight=1.0, upper=np.inf)
    for name, limit in limits.items():
        costs = [decision.costs[name] for decision in program.decisions]
        rows.limit(costs, -program.fixed[name], (factor, -limit))
    answer = rows.minimise(time_limit_s)
    return answer and answer[0]


def least_cost(program: Program, name: str, time_limit_s: float = TIME_LIMIT_S) -> float:
    """Return the least one cost can be, whatever the other limits and the score."""
    if not program.links:
        return program.smallest(name)
    costs = [decision.costs[name] for decision in program.decisions]
    answer = solve(program, {}, objective=costs, time_limit_s=time_limit_s)
    assert answer is not None, "without limits every table has a child"
    return program.cost(name, answer[0])


class _Rows:
    """The rows and columns of one integer program; equal decisions share columns where `share`."""

    def __init__(self, program: Program, *, share: bool):
        shared: dict[object, list[int]] = {}
        tied = {d for term in program.terms for d, _ in (term.first, term.second)}
        tied |= {d for link in program.links for d, _ in ((link.decision, ()), *link.needs)}
        for d, decision in enumerate(program.decisions):
            is_shared = share and d not in tied
            shared.setdefault(decision.key() if is_shared else d, []).append(d)
        self.decisions = program.decisions
        self.members = list(shared.values())
        sizes = [len(program.decisions[members[0]].names) for members in self.members]
        self.starts = [0, *np.cumsum(sizes).tolist()]
        self.column_of = {
            d: start
            for start, members in zip(self.starts, self.members, strict=False)
            for d in members
        }
        self.num_integers = self.starts[-1]
        self.upper = [
            float(len(m)) for m, n in zip(self.members, sizes, strict=True) for _ in range(n)
        ]
        self.weights = [0.0] * self.num_integers
        self.rows: list[tuple[dict[int, float], float, float]] = [
            (dict.fromkeys(range(start, stop), 1.0), len(members), len(members))
            for (start, stop), members in zip(pairwise(self.starts), self.members, strict=True)
        ]
        self._link(program)

    def _link(self, program: Program) -> None:
        """Allow "fused" of a span where its layers take what it needs, one span a layer."""
        over: dict[int, dict[int, float]] = {}
        for link in program.links:
            fused = self.column_of[link.decision] + 1
            for d, js in link.needs:
                taken = {self.column_of[d] + j: -1.0 for j in js}
                self.rows.append((taken | {fused: 1.0}, -np.inf, 0.0))
            for i in link.span.layers:
                over.setdefault(i, {})[fused] = 1.0
        self.rows += [(columns, -np.inf, 1.0) for columns in over.values() if len(columns) > 1]

    def add_column(self, *, weight: float = 0.0, upper: float = 1.0) -> int:
        """Add a continuous column and return its index."""
        self.weights.append(weight)
        self.upper.append(upper)
        return len(self.weights) - 1

    def _spread(self, values: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([values[members[0]] for members in self.members])

    def weigh(self, values: Sequence[np.ndarray]) -> None:
        """Set what is minimised, less the least of each decision, which changes nothing."""
        self.weights[: self.num_integers] = self._spread([v - v.min() for v in values]).tolist()

    def add_terms(self, program: Program) -> None:
        """Add every pair's column, 1 where both of its choices are taken, to what is minimised."""
        for term in program.terms:
            both = self.add_column(weight=term.score)
            taken = [
                {self.column_of[d] + j: 1.0 for j in js} for d, js in (term.first, term.second)
            ]
            for columns in taken:
                self.rows.append((dict.fromkeys(columns, -1.0) | {both: 1.0}, -np.inf, 0.0))
            self.rows.append((taken[0] | taken[1] | {both: -1.0}, -np.inf, 1.0))

    def limit(
        self, costs: Sequence[np.ndarray], bound: float, more: tuple[int, float] | None = None
    ) -> None:
        """Bound a sum of costs, scaled so that HiGHS's 1e-6 of violation is our relative 1e-9.

        `more` is a column to add to the sum, with its coefficient.
        """
        row = self._spread(costs)
        size = max(abs(bound), abs(more[1]) if more else 0.0, float(np.abs(row).max()))
        scale = 1e3 / (size or 1.0)
        entries = {int(c): float(row[c]) * scale for c in np.flatnonzero(row)}
        if more:
            entries[more[0]] = more[1] * scale
        self.rows.append((entries, -np.inf, bound * scale))

    def differ(self, pick: Pick, min_difference: int) -> None:
        """Keep away from `pick` in at least `min_difference` layers.

        For two subblocks a layer, z >= x_attention + x_ffn - 1 says that both are as in `pick`.
        """
        columns = [self.column_of[d] + j for d, j in enumerate(pick)]
        if min_difference == 1:
            self.rows.append((dict.fromkeys(columns, 1.0), -np.inf, len(columns) - 1))
            return
        same: dict[int, list[int]] = {}
        for decision, column in zip(self.decisions, columns, strict=False):
            same.setdefault(decision.layer, []).append(column)
        kept: list[int] = []
        for both in same.values():
            if len(both) == 1:
                kept += both
                continue
            z = self.add_column()
            self.rows.append(({both[0]: 1.0, both[1]: 1.0, z: -1.0}, -np.inf, 1))
            kept.append(z)
        self.rows.append((dict.fromkeys(kept, 1.0), -np.inf, len(kept) - min_difference))

    def minimise(self, time_limit_s: float, gap: float = 0.0) -> tuple[Pick, bool] | None:
        """Solve to a gap; return the pick and whether that is proved."""
        from scipy.optimize import milp
        from scipy.sparse import csr_array

        # HiGHS stops within 1e-6 of the optimum, whatever the relative gap; with the largest weight
        # at 1e4 that is 1e-10 of the largest score.
        weights = np.array(self.weights)
        weights *= 1e4 / (float(np.abs(weights).max()) or 1.0)
        integrality = np.zeros(len(weights))
        integrality[: self.num_integers] = 1
        entries = [(r, c, v) for r, row in enumerate(self.rows) for c, v in row[0].items()]
        r, c, v = zip(*entries, strict=True)
        matrix = csr_array((v, (r, c)), shape=(len(self.rows), len(weights)))
        low, high = [row[1] for row in self.rows], [row[2] for row in self.rows]
        with _quiet_stdout():
            result = milp(
                weights,
                integrality=integrality,
                bounds=(0, np.array(self.upper)),
                constraints=(matrix, np.array(low), np.array(high)),
                options={"mip_rel_gap": gap, "time_limit": time_limit_s, "presolve": True},
            )
        if result.status == 2:
            return None
        if result.x is None:
            raise ValueError(
                f"search: no child found within {time_limit_s:g} s and none ruled out "
                f"({result.message}); raise time_limit_s or loosen a limit"
            )
        return self._pick(np.rint(result.x).astype(int)), result.status == 0

    def _pick(self, counts: np.ndarray) -> Pick:
        pick = [0] * len(self.decisions)
        for start, members in zip(self.starts, self.members, strict=False):
            size = len(self.decisions[members[0]].names)
            chosen = np.repeat(np.arange(size), counts[start : start + size])
            for d, j in zip(members, chosen, strict=True):
                pick[d] = int(j)
        return tuple(pick)


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Send file descriptor 1 to nowhere: HiGHS prints from C++, past sys.stdout."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
