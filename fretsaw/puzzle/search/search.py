"""The search stage: scores and costs joined into tables, a target made bounds, the best child.

No torch here: a second target for the same parent is answered in seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from fretsaw.puzzle.search.bounds import (
    TOKENS_OF_PHASE,
    Bound,
    CostedScenario,
    bounds_at,
    explain_targets,
    limits_of,
    read_served,
    where_to_search,
)
from fretsaw.puzzle.search.explain import Infeasible
from fretsaw.puzzle.search.highs import solve
from fretsaw.puzzle.search.program import Program, Solution
from fretsaw.puzzle.search.rules import Rules, rules_of, taken
from fretsaw.puzzle.search.solutions import (
    pareto,
    search_by,
    solution_to_json,
    write_solutions,
)
from fretsaw.puzzle.search.table import Table
from fretsaw.puzzle.search.table_json import write_table
from fretsaw.puzzle.settings import Method, SearchSettings
from fretsaw.scenario.target import parse_targets
from fretsaw.stage.artifact import read_output
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.stage.whole import write_json


@dataclass(frozen=True)
class Attempt:
    """The search at one scenario: what was found there, or why nothing was."""

    served: CostedScenario
    table: Table
    bounds: list[Bound]
    solutions: list[Solution]
    infeasible: Infeasible | None = None


def search(settings: SearchSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the table, the solutions, the front, the baselines and the forecast of the best."""
    scores = read_output(inputs["scores"], "scores.json", {"layers": list})
    served = read_served(scores, read_output(inputs["costs"], "costs.json", {"alternatives": dict}))
    targets = parse_targets(settings.target)
    rules = rules_of(settings.engine, settings.tensor_parallel)
    attempts = []
    for here in where_to_search(served, targets):
        table, bounds = bounds_at(here, served, targets, settings.margin)
        attempts.append(attempt(settings, rules, here, table, bounds, run.seed))
    successes = [one for one in attempts if one.solutions]
    if not successes:
        raise Infeasible(_why_not(attempts, settings))
    best = min(successes, key=lambda one: one.solutions[0].score)

    forecast = _forecast(settings, served[0], best, attempts)
    write_search(run.folder, settings, best.table, best.solutions, forecast, rules, seed=run.seed)
    _say(settings, served[0], best)
    return {
        "score": best.solutions[0].score,
        "proved": best.solutions[0].proved,
        "solutions": len(best.solutions),
    }


def write_search(
    folder: Path,
    settings: SearchSettings,
    table: Table,
    solutions: Sequence[Solution],
    forecast: Mapping[str, Any],
    rules: Rules,
    *,
    seed: int,
) -> None:
    """Write the solutions, what is foreseen of the best, and what stands beside them."""
    write_table(folder / "table.json", table)
    write_solutions(folder / "solutions.json", solutions)
    write_json(folder / "forecast.json", forecast)
    front = pareto(table, settings.pareto_cost, settings.pareto_points, rules=rules)
    write_solutions(folder / "front.json", [_by_subblock(one) for one in front])
    others = _baselines(table, forecast["bounds"], rules, seed)
    write_json(folder / "baselines.json", others)


def attempt(
    settings: SearchSettings,
    rules: Rules,
    here: CostedScenario,
    table: Table,
    bounds: list[Bound],
    seed: int,
) -> Attempt:
    """Search one scenario's table."""
    try:
        solutions = search_by(
            settings.method,
            table,
            limits_of(bounds),
            num_solutions=settings.num_solutions,
            min_difference=settings.min_difference,
            alpha=settings.alpha,
            rules=rules,
            seed=seed,
        )
    except Infeasible as error:
        return Attempt(here, table, bounds, [], error)
    limits = limits_of(bounds)
    others = [_first(method, table, limits, rules, seed) for method in settings.pool]
    own = {solution.choices: solution for solution in solutions}
    pool = {one.choices: one for one in others if isinstance(one, Solution)}
    distinct = [one for choices, one in pool.items() if choices not in own]
    kept = [*solutions[: settings.num_solutions - len(distinct)], *distinct]
    return Attempt(here, table, bounds, [_by_subblock(one) for one in kept])


def _first(
    method: Method, table: Table, limits: Mapping[str, float], rules: Rules, seed: int
) -> Solution | Infeasible:
    """Return the best child that a method finds, or why it finds none."""
    try:
        return search_by(method, table, limits, rules=rules, seed=seed)[0]
    except Infeasible as error:
        return error


def _by_subblock(solution: Solution) -> Solution:
    """Return the solution with blocks such as "gqa2+ffn192" as (attention, ffn)."""
    parts = [c.split("+") if isinstance(c, str) else list(c) for c in solution.choices]
    choices = tuple((p[0], p[1]) if len(p) == 2 else "+".join(p) for p in parts)
    return replace(solution, choices=choices)


def _speedups(
    child: Mapping[str, float], at: CostedScenario, reference: CostedScenario
) -> dict[str, float]:
    """Return tokens/s of a child served at one scenario over the parent's at the reference."""
    return {
        name.removesuffix("_ms"): (at.tokens(name) / child[name])
        / (reference.tokens(name) / reference.parent[name])
        for name in TOKENS_OF_PHASE
    }


# --- what is said ---------------------------------------------------------------------------------


def _forecast(
    settings: SearchSettings, reference: CostedScenario, best: Attempt, attempts: Sequence[Attempt]
) -> dict[str, Any]:
    def foreseen(one: Attempt) -> dict[str, Any]:
        where = {"scenario": str(one.served.scenario), "bounds": limits_of(one.bounds)}
        if not one.solutions:
            return {**where, "infeasible": str(one.infeasible)}
        child = one.solutions[0]
        return {
            **where,
            "parent": dict(one.served.parent),
            "child": dict(child.costs),
            "speedup": _speedups(child.costs, one.served, reference),
            "score": child.score,
        }

    return {
        "target": settings.target,
        "method": settings.method,
        "engine": settings.engine,
        **foreseen(best),
        "reference": str(reference.scenario),
        "scenarios": [foreseen(one) for one in attempts],
    }


def _baselines(
    table: Table, limits: Mapping[str, float], rules: Rules, seed: int
) -> list[dict[str, Any]]:
    """Return what every other method finds under the same bounds, or why it finds nothing."""
    rows = []
    for method in get_args(Method):
        if method == "mip":
            continue
        found = _first(method, table, limits, rules, seed)
        if isinstance(found, Infeasible):
            rows.append({"method": method, "infeasible": str(found)})
        else:
            rows.append({"method": method, **solution_to_json(_by_subblock(found))})
    return rows


def _say(settings: SearchSettings, reference: CostedScenario, best: Attempt) -> None:
    child, parent = best.solutions[0], reference.parent
    speedups = _speedups(child.costs, best.served, reference)
    say(
        f"search: {settings.target} at {best.served.scenario} -> "
        f"{speedups['decode']:.2f}x decode, {speedups['prefill']:.2f}x prefill, "
        f"{child.costs['memory_mib'] / parent['memory_mib']:.0%} memory, "
        f"{child.costs['params'] / parent['params']:.0%} parameters, "
        f"sum of scores {child.score:.4f}"
    )
    if best.served is not reference:
        say(f"search: the parent's figures are those at {reference.scenario}")
    if len(best.solutions) < settings.num_solutions:
        say(
            f"search: {len(best.solutions)} solutions, not {settings.num_solutions}: no more are "
            "as different as asked; lower min_difference or raise alpha"
        )


def _why_not(attempts: Sequence[Attempt], settings: SearchSettings) -> str:
    """Explain the scenario that misses the target least, and which settings stand in the way."""
    explained = [one for one in attempts if one.infeasible and one.infeasible.reach]
    if not explained:
        return str(attempts[0].infeasible)
    nearest = min(explained, key=lambda one: one.infeasible.reach.factor)  # type: ignore[union-attr]
    assert nearest.infeasible is not None
    assert nearest.infeasible.reach is not None
    remedies = ["ask for that"]
    limits = limits_of(nearest.bounds)
    free = taken(nearest.table, rules_of("transformers"))
    if solve(Program.of(free, limits), limits) is not None:
        remedies.append(f"set engine to transformers, since {settings.engine} refuses a part")
    rules = rules_of(settings.engine, settings.tensor_parallel)
    exact = limits_of(replace(b, limit=b.limit / (1 - b.margin)) for b in nearest.bounds)
    if solve(Program.of(taken(nearest.table, rules), exact), exact) is not None:
        remedies.append(f"set margin, which is {settings.margin:g}, to 0")
    text = explain_targets(nearest.infeasible.reach, nearest.bounds, nearest.served.scenario)
    others = f" (nearest of {len(attempts)} scenarios)" if len(attempts) > 1 else ""
    return f"{text}{others}; {', or '.join(remedies)}, or widen the space by cheaper alternatives"
