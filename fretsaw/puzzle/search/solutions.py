"""The search, as callers use it: tables, limits and rules in, children out, the best first.

Exact by default; the other methods stand behind the same call, for comparison. No torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fretsaw.puzzle.search import baselines
from fretsaw.puzzle.search.explain import Infeasible, explain, find_reach
from fretsaw.puzzle.search.highs import TIME_LIMIT_S, least_cost, solve
from fretsaw.puzzle.search.program import Pick, Program, Solution, best_first
from fretsaw.puzzle.search.rules import FIRST_ATTENTION, Rules, taken
from fretsaw.puzzle.search.table import Table
from fretsaw.puzzle.search.table_json import read_table
from fretsaw.puzzle.settings import Method
from fretsaw.stage.artifact import read_output
from fretsaw.stage.whole import atomic_folder, write_json

SOLUTIONS = "solutions.json"


def search_table(
    table: Table,
    limits: Mapping[str, float],
    *,
    num_solutions: int = 1,
    min_difference: int = 1,
    alpha: float = 1.0,
    rules: Rules = FIRST_ATTENTION,
    time_limit_s: float = TIME_LIMIT_S,
    gap: float = 0.0,
) -> list[Solution]:
    """Return up to `num_solutions` children within the limits, least score first.

    Each differs from every earlier one in at least `min_difference` layers and has at most a share
    `alpha` of layers in common with it; fewer come back where no more exist. `proved` is False only
    where a solve met `time_limit_s`; with a `gap` above 0 it is proved to that share of the score
    alone, which is quick where near-ties abound. Raises `Infeasible` where nothing fits,
    `ValueError` for a limit on an unknown cost and for rules that leave a subblock nothing.
    """
    num_layers = len(table.layers)
    if num_solutions < 1 or not 1 <= min_difference <= num_layers or not 0 <= alpha <= 1:
        raise ValueError(
            f"search: num_solutions {num_solutions}, min_difference {min_difference} and alpha "
            f"{alpha:g} are out of range; ask for at least 1 solution, 1 to {num_layers} layers of "
            "difference, and a share of 0 to 1 in common"
        )
    _check(limits)
    min_difference = max(min_difference, num_layers - math.floor(alpha * num_layers + 1e-9))
    program = Program.of(taken(table, rules), limits)
    solutions: list[Solution] = []
    found: list[Pick] = []
    while len(solutions) < num_solutions:
        answer = solve(
            program,
            limits,
            found=found,
            min_difference=min_difference,
            time_limit_s=time_limit_s,
            gap=gap,
        )
        if answer is None:
            break
        pick, proved = answer
        found.append(pick)
        solutions.append(program.solution(pick, proved=proved))
    if not solutions:
        reach = find_reach(program, limits, time_limit_s)
        raise Infeasible(explain(reach), reach)
    return best_first(solutions)


def search_by(
    method: Method,
    table: Table,
    limits: Mapping[str, float],
    *,
    num_solutions: int = 1,
    min_difference: int = 1,
    alpha: float = 1.0,
    rules: Rules = FIRST_ATTENTION,
    seed: int = 0,
) -> list[Solution]:
    """Return up to `num_solutions` children by a method, best first, all within limits and rules.

    Diversity is asked of the exact search alone, which alone fuses spans; `seed` matters to the
    random one.
    """
    if method == "mip":
        return search_table(
            table,
            limits,
            num_solutions=num_solutions,
            min_difference=min_difference,
            alpha=alpha,
            rules=rules,
        )
    _check(limits)
    ruled = taken(replace(table, spans=()), rules)
    match method:
        case "greedy":
            found = baselines.greedy(ruled, limits)
        case "uniform":
            found = baselines.uniform(ruled, limits)
        case "depth" | "contiguous":
            found = baselines.depth(ruled, limits, contiguous=method == "contiguous")
        case "max_params":
            found = baselines.max_params(ruled, limits)
        case "random":
            found = baselines.draw(ruled, limits, seed=seed, num_solutions=num_solutions)
    return found[:num_solutions]


def _check(limits: Mapping[str, float]) -> None:
    for name, limit in limits.items():
        if not math.isfinite(limit):
            raise ValueError(f"search: limit {name}={limit} is no finite number; drop it instead")


def pareto(
    table: Table,
    cost_name: str,
    num_points: int,
    *,
    limits: Mapping[str, float] | None = None,
    rules: Rules = FIRST_ATTENTION,
) -> list[Solution]:
    """Return the best children at `num_points` limits on one cost, cheapest first, without repeats.

    The limits go in equal steps from the smallest reachable cost to that of the best-scored child,
    which is the parent where the parent scores best. Other `limits` hold throughout.
    """
    if num_points < 2:
        raise ValueError(f"search: a front of {num_points} points is none; ask for at least 2")
    others = dict(limits or {})
    _check(others)
    program = Program.of(taken(table, rules), [cost_name, *others])
    costs = [decision.costs[cost_name] for decision in program.decisions]
    cheapest, best = solve(program, others, objective=costs), solve(program, others)
    if cheapest is None or best is None:
        reach = find_reach(program, others)
        raise Infeasible(explain(reach), reach)
    low, high = program.cost(cost_name, cheapest[0]), program.cost(cost_name, best[0])
    front: list[Solution] = []
    for bound in np.linspace(low, high, num_points):
        bounds = {**others, cost_name: min(float(bound), others.get(cost_name, float("inf")))}
        answer = solve(program, bounds)
        assert answer is not None, f"{cost_name} {bound} is reached by the cheapest child"
        solution = program.solution(answer[0], proved=answer[1])
        own = (solution.choices, solution.fused)
        if not front or own != (front[-1].choices, front[-1].fused):
            front.append(solution)
    return front


def smallest_cost(table: Table, cost_name: str, *, rules: Rules = FIRST_ATTENTION) -> float:
    """Return the least that one cost can be, whatever the score."""
    return least_cost(Program.of(taken(table, rules), [cost_name]), cost_name)


# --- files ----------------------------------------------------------------------------------------


def search_file(
    table_path: Path, limits: Sequence[str], out: Path, num_solutions: int = 1
) -> list[Solution]:
    """Search a table on disk under limits such as "runtime_ms=20"; write `out`/solutions.json."""
    if num_solutions < 1:
        raise ValueError(f"search: num_solutions {num_solutions}; give 1 or more")
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


def read_solutions(search: Path) -> list[dict[str, Any]]:
    """Read the solutions of a finished search, best first, as they are written."""
    return read_output(search, SOLUTIONS, [{"choices": list}])


def write_solutions(path: Path, solutions: Sequence[Solution]) -> None:
    """Write a JSON list, best first: score, proved, costs, and a choice (or two) per layer."""
    write_json(path, [solution_to_json(solution) for solution in solutions])


def solution_to_json(solution: Solution) -> dict:
    """Return the published form of one solution."""
    return {
        "score": solution.score,
        "proved": solution.proved,
        "costs": solution.costs,
        "choices": [c if isinstance(c, str) else list(c) for c in solution.choices],
        **({"fused": list(solution.fused)} if solution.fused else {}),
    }
