"""The exact search: one alternative per subblock, the least total score under limits on costs.

    minimise sum score(i, j) x(i, j)   subject to   fixed + sum cost(i, j) x(i, j) <= limit,
    exactly one alternative per subblock, x binary                     (Puzzle, 2411.19146)

solved with HiGHS to a gap of 0, every answer checked again in plain arithmetic. A limit's name is a
cost or a sum of costs ("prefill_ms+decode_ms"). Layers with equal entries share integer variables,
so 80 equal layers are no harder than one. No torch.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fretsaw.artifact import atomic_folder, write_json
from fretsaw.puzzle.table import Table, nearest, read_table

RELATIVE_NOISE = 1e-9  # limits are compared with this much slack, for sums of floats
MAX_REJECTED = 50
SOLUTIONS = "solutions.json"

Choice = str | tuple[str, str]  # a block, or (attention, ffn)
Pick = tuple[int, ...]  # the chosen alternative of every group


class Infeasible(ValueError):
    """No child meets the limits; the message says which bind and what can be reached."""


@dataclass(frozen=True)
class Solution:
    """One child: its total score, whether that is proved the least, its costs and its choices."""

    score: float
    proved: bool
    costs: dict[str, float]
    choices: tuple[Choice, ...]


class _Group(NamedTuple):
    """The alternatives of one subblock, of which exactly one is taken."""

    layer: int
    names: tuple[str, ...]
    scores: np.ndarray
    costs: dict[str, np.ndarray]

    def key(self) -> tuple:
        """Return what makes two groups interchangeable."""
        figures = (self.scores, *self.costs.values())
        return (self.names, *(array.tobytes() for array in figures))


class _Program(NamedTuple):
    groups: tuple[_Group, ...]
    fixed: dict[str, float]

    def score(self, pick: Pick) -> float:
        return float(sum(group.scores[j] for group, j in zip(self.groups, pick, strict=True)))

    def cost(self, name: str, pick: Pick) -> float:
        values = (group.costs[name][j] for group, j in zip(self.groups, pick, strict=True))
        return float(self.fixed[name] + sum(values))

    def smallest(self, name: str) -> float:
        """Return the least this cost can be, whatever the other limits and the score."""
        return self.cost(name, tuple(int(np.argmin(g.costs[name])) for g in self.groups))

    def fits(self, pick: Pick, limits: Mapping[str, float]) -> bool:
        return all(_within(self.cost(name, pick), limit) for name, limit in limits.items())


def _within(value: float, limit: float) -> bool:
    return value <= limit + RELATIVE_NOISE * max(abs(limit), abs(value))


# --- what callers use -----------------------------------------------------------------------------


def search_table(
    table: Table,
    limits: Mapping[str, float],
    *,
    num_solutions: int = 1,
    min_difference: int = 1,
    first_attention: bool = True,
    time_limit_s: float = 60.0,
) -> list[Solution]:
    """Return up to `num_solutions` children within the limits, least score first.

    Each differs from every earlier one in at least `min_difference` layers; fewer come back where
    no more exist. `first_attention` keeps attention in layer 0, without which vLLM and llama.cpp
    crash. `proved` is False only where a solve met `time_limit_s`. Raises `Infeasible` where
    nothing fits, `ValueError` for a limit on an unknown cost.
    """
    if num_solutions < 1 or not 1 <= min_difference <= len(table.layers):
        raise ValueError(
            f"search: num_solutions {num_solutions} and min_difference {min_difference} are out of "
            f"range; ask for at least 1 solution and 1 to {len(table.layers)} layers of difference"
        )
    program = _program(table, limits, first_attention)
    solutions: list[Solution] = []
    found: list[Pick] = []
    while len(solutions) < num_solutions:
        scores = [group.scores for group in program.groups]
        answer = _solve(program, scores, limits, found, min_difference, time_limit_s)
        if answer is None:
            break
        pick, proved = answer
        found.append(pick)
        solutions.append(_solution(table, program, pick, proved))
    if not solutions:
        raise Infeasible(_explain(program, limits, time_limit_s))
    return sorted(solutions, key=lambda solution: solution.score)


def pareto(
    table: Table,
    cost_name: str,
    num_points: int,
    *,
    limits: Mapping[str, float] | None = None,
    first_attention: bool = True,
) -> list[Solution]:
    """Return the best children at `num_points` limits on one cost, cheapest first, without repeats.

    The limits go in equal steps from the smallest reachable cost to that of the best-scored child,
    which is the parent where the parent scores best. Other `limits` hold throughout.
    """
    if num_points < 2:
        raise ValueError(f"search: a front of {num_points} points is none; ask for at least 2")
    others = dict(limits or {})
    program = _program(table, {cost_name: 0.0, **others}, first_attention)
    costs = [group.costs[cost_name] for group in program.groups]
    cheapest = _solve(program, costs, others, [], 1, 60.0)
    if cheapest is None:
        raise Infeasible(_explain(program, others, 60.0))
    low = program.cost(cost_name, cheapest[0])
    best = search_table(table, others, first_attention=first_attention)[0]
    high = sum(best.costs[name] for name in cost_name.split("+"))
    front: list[Solution] = []
    for bound in np.linspace(low, high, num_points):
        bounds = {**others, cost_name: min(float(bound), others.get(cost_name, float("inf")))}
        (solution,) = search_table(table, bounds, first_attention=first_attention)
        if not front or solution.choices != front[-1].choices:
            front.append(solution)
    return front


def smallest_cost(table: Table, cost_name: str, *, first_attention: bool = True) -> float:
    """Return the least that one cost can be, whatever the score."""
    return _program(table, {cost_name: 0.0}, first_attention).smallest(cost_name)


def search_file(
    table_path: Path, limits: Sequence[str], out: Path, num_solutions: int = 1
) -> list[Solution]:
    """Search a table on disk under limits such as "runtime_ms=20"; write `out`/solutions.json."""
    table = read_table(table_path)
    solutions = search_table(table, parse_limits(limits), num_solutions=num_solutions)
    with atomic_folder(out) as folder:
        write_solutions(folder / SOLUTIONS, solutions)
    return solutions


def parse_limits(limits: Sequence[str]) -> dict[str, float]:
    """Read "runtime_ms=20" limits; the tightest counts where a cost is limited twice."""
    bounds: dict[str, float] = {}
    for text in limits:
        name, _, amount = (part.strip() for part in text.partition("="))
        try:
            bound = float(amount)
        except ValueError:
            bound = float("nan")
        if not name or not np.isfinite(bound):
            raise ValueError(f"search: limit {text!r} is not understood; write runtime_ms=20")
        bounds[name] = min(bound, bounds.get(name, bound))
    return bounds


def write_solutions(path: Path, solutions: Sequence[Solution]) -> None:
    """Write a JSON list, best first: score, proved, costs, and a choice (or two) per layer."""
    write_json(
        path,
        [
            {
                "score": solution.score,
                "proved": solution.proved,
                "costs": solution.costs,
                "choices": [c if isinstance(c, str) else list(c) for c in solution.choices],
            }
            for solution in solutions
        ],
    )


# --- from a table to a program and back -----------------------------------------------------------


def _program(table: Table, limits: Mapping[str, float], first_attention: bool) -> _Program:
    for name, limit in limits.items():
        for part in name.split("+"):
            if part not in table.cost_names:
                hint = nearest(part, table.cost_names)
                raise ValueError(f"search: limit on unknown cost {part!r}; {hint}")
        if not np.isfinite(limit):
            raise ValueError(f"search: limit {name}={limit} is no finite number; drop it instead")
    wanted = (*table.cost_names, *(name for name in limits if name not in table.cost_names))
    groups = []
    for i, layer in enumerate(table.layers):
        for subblock in sorted(layer):  # attention before ffn
            offered = layer[subblock]
            if i == 0 and first_attention and subblock != "ffn":
                offered = {name: a for name, a in offered.items() if "attn_none" not in name}
            if not offered:
                raise ValueError(
                    "search: layer 0 offers no attention, which engines need in the first layer; "
                    "add one to the table or turn the rule first_attention off"
                )
            costs = {
                name: np.array(
                    [sum(a.costs[p] for p in name.split("+")) for a in offered.values()], float
                )
                for name in wanted
            }
            scores = np.array([a.score for a in offered.values()], float)
            groups.append(_Group(i, tuple(offered), scores, costs))
    fixed = {name: sum(table.fixed.get(p, 0.0) for p in name.split("+")) for name in wanted}
    return _Program(tuple(groups), fixed)


def _solution(table: Table, program: _Program, pick: Pick, proved: bool) -> Solution:
    names: list[list[str]] = [[] for _ in table.layers]
    for group, j in zip(program.groups, pick, strict=True):
        names[group.layer].append(group.names[j])
    costs = {name: program.cost(name, pick) for name in table.cost_names}
    choices = tuple(n[0] if len(n) == 1 else (n[0], n[1]) for n in names)
    return Solution(program.score(pick), proved, costs, choices)


# --- HiGHS ----------------------------------------------------------------------------------------


def _solve(
    program: _Program,
    objective: list[np.ndarray],
    limits: Mapping[str, float],
    found: list[Pick],
    min_difference: int,
    time_limit_s: float,
) -> tuple[Pick, bool] | None:
    """Return the best pick that fits and differs from those `found`, or None where there is none.

    A pick that HiGHS's tolerances let through and plain arithmetic does not is excluded by a cut of
    its own and the program solved again, so the answer stays exact.
    """
    rejected: list[Pick] = []
    while len(rejected) < MAX_REJECTED:
        rows = _Rows(program, share=not (found or rejected))
        for name, limit in limits.items():
            bound = limit + RELATIVE_NOISE * abs(limit) - program.fixed[name]
            rows.limit([group.costs[name] for group in program.groups], bound)
        for pick in found:
            rows.differ(pick, min_difference)
        for pick in rejected:
            rows.differ(pick, 1)
        answer = rows.minimise(objective, time_limit_s)
        if answer is None or program.fits(answer[0], limits):
            return answer
        rejected.append(answer[0])
    raise ValueError(
        f"search: {MAX_REJECTED} children miss a limit by rounding alone; move the limits a bit: "
        + ", ".join(f"{name}={limit!r}" for name, limit in limits.items())
    )


class _Rows:
    """The rows and columns of one integer program; equal groups share columns where `share`."""

    def __init__(self, program: _Program, *, share: bool):
        shared: dict[object, list[int]] = {}
        for g, group in enumerate(program.groups):
            shared.setdefault(group.key() if share else g, []).append(g)
        self.groups = program.groups
        self.members = list(shared.values())
        sizes = [len(program.groups[members[0]].names) for members in self.members]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.num_columns = int(self.starts[-1])
        self.upper = [
            float(len(m)) for m, n in zip(self.members, sizes, strict=True) for _ in range(n)
        ]
        self.num_integers = self.num_columns
        self.rows: list[tuple[dict[int, float], float, float]] = [
            (dict.fromkeys(range(self.starts[m], self.starts[m + 1]), 1.0), len(g), len(g))
            for m, g in enumerate(self.members)
        ]

    def _spread(self, values: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([values[members[0]] for members in self.members])

    def limit(self, costs: list[np.ndarray], bound: float) -> None:
        """Bound a sum of costs, scaled so that HiGHS's 1e-6 of violation is our relative 1e-9."""
        row = self._spread(costs)
        scale = 1e3 / (max(abs(bound), float(np.abs(row).max())) or 1.0)
        entries = {int(c): float(row[c]) * scale for c in np.flatnonzero(row)}
        self.rows.append((entries, -np.inf, bound * scale))

    def differ(self, pick: Pick, min_difference: int) -> None:
        """Keep away from `pick` in at least `min_difference` layers.

        For two subblocks a layer, z >= x_attention + x_ffn - 1 says that both are as in `pick`.
        """
        columns = [int(self.starts[g]) + j for g, j in enumerate(pick)]
        if min_difference == 1:
            self.rows.append((dict.fromkeys(columns, 1.0), -np.inf, len(columns) - 1))
            return
        same: dict[int, list[int]] = {}
        for group, column in zip(self.groups, columns, strict=True):
            same.setdefault(group.layer, []).append(column)
        kept: list[int] = []
        for both in same.values():
            if len(both) == 1:
                kept += both
                continue
            z, self.num_columns = self.num_columns, self.num_columns + 1
            self.upper.append(1.0)
            self.rows.append(({both[0]: 1.0, both[1]: 1.0, z: -1.0}, -np.inf, 1))
            kept.append(z)
        self.rows.append((dict.fromkeys(kept, 1.0), -np.inf, len(kept) - min_difference))

    def minimise(
        self, objective: list[np.ndarray], time_limit_s: float
    ) -> tuple[Pick, bool] | None:
        """Solve to a gap of 0; return the pick and whether it is proved best."""
        from scipy.optimize import milp
        from scipy.sparse import csr_array

        # From each group its least is taken away, and the largest rest becomes 1e4: HiGHS stops
        # within 1e-6 of the optimum, which is then 1e-10 of the largest score.
        rest = self._spread([values - values.min() for values in objective])
        scale = 1e4 / (float(rest.max()) or 1.0)
        weights = np.zeros(self.num_columns)
        weights[: self.num_integers] = rest * scale
        integrality = np.zeros(self.num_columns)
        integrality[: self.num_integers] = 1
        entries = [(r, c, v) for r, row in enumerate(self.rows) for c, v in row[0].items()]
        r, c, v = zip(*entries, strict=True)
        matrix = csr_array((v, (r, c)), shape=(len(self.rows), self.num_columns))
        low, high = [row[1] for row in self.rows], [row[2] for row in self.rows]
        with _quiet_stdout():
            result = milp(
                weights,
                integrality=integrality,
                bounds=(0, np.array(self.upper)),
                constraints=(matrix, np.array(low), np.array(high)),
                options={"mip_rel_gap": 0.0, "time_limit": time_limit_s, "presolve": True},
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
        pick = [0] * len(self.groups)
        for start, members in zip(self.starts, self.members, strict=False):
            size = len(self.groups[members[0]].names)
            chosen = np.repeat(np.arange(size), counts[start : start + size])
            for g, j in zip(members, chosen, strict=True):
                pick[g] = int(j)
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


# --- why nothing fits -----------------------------------------------------------------------------


def _explain(program: _Program, limits: Mapping[str, float], time_limit_s: float) -> str:
    """Say in one sentence which limits bind, what can be reached, and what to do."""
    wanted = " and ".join(f"{name} <= {limit:g}" for name, limit in limits.items())
    alone = {name: program.smallest(name) for name in limits}
    binding = [name for name in limits if not _within(alone[name], limits[name])]
    reach = ", ".join(f"{name} {_ceil(value)}" for name, value in alone.items())
    relaxed = {}
    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        costs = [group.costs[name] for group in program.groups]
        answer = _solve(program, costs, others, [], 1, time_limit_s)
        if answer is not None:
            relaxed[name] = program.cost(name, answer[0])
    if binding:
        reason = f"{' and '.join(binding)} cannot go that low"
    else:
        reason = "each can be met alone but not together"
    if relaxed:
        remedy = " or ".join(f"raise {name} to {_ceil(value)}" for name, value in relaxed.items())
        remedy += " with the rest as it is" if len(limits) > 1 else ""
    else:
        remedy = "raise more than one of them"
    return (
        f"search: no child has {wanted}: {reason}; the smallest reachable, each alone: {reach}; "
        f"{remedy}, or add cheaper alternatives"
    )


def _ceil(value: float) -> str:
    """Write four decimals' worth of a limit, rounded up so that it can be met when typed back."""
    if value == 0:
        return "0"
    unit = 10.0 ** (int(np.floor(np.log10(abs(value)))) - 4)
    return f"{np.ceil(value / unit * (1 - 1e-12)) * unit:.10g}"
