"""The search stage: scores and costs joined into one table, a target made bounds, the best child.

No torch here: a second target for the same parent is answered in seconds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fretsaw.artifact import write_json
from fretsaw.progress import say
from fretsaw.puzzle.search import Solution, pareto, search_table, write_solutions
from fretsaw.puzzle.settings import SearchSettings
from fretsaw.puzzle.table import Alternative, Table, write_table
from fretsaw.scenario import TOTAL_MS, limits, parse_targets
from fretsaw.stage import StageRun

TIMES = ("prefill_ms", "decode_ms")


def search(settings: SearchSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the table, the solutions, the front and the forecast of the best child."""
    scores = json.loads((inputs["scores"] / "scores.json").read_text())
    costs = json.loads((inputs["costs"] / "costs.json").read_text())
    table = join(scores, costs)
    parent = parent_solution(table)
    bounds = limits(parse_targets(settings.target), parent.costs)
    for name in bounds:
        if name in (*TIMES, TOTAL_MS):
            bounds[name] *= 1 - settings.margin
    solutions = search_table(
        table,
        bounds,
        num_solutions=settings.num_solutions,
        min_difference=settings.min_difference,
    )
    best = solutions[0]
    speedups = {name: parent.costs[name] / best.costs[name] for name in TIMES}
    forecast = {
        "target": settings.target,
        "scenario": costs["scenario"],
        "bounds": bounds,
        "parent": dict(parent.costs),
        "child": dict(best.costs),
        "speedup": {"prefill": speedups["prefill_ms"], "decode": speedups["decode_ms"]},
        "score": best.score,
    }
    write_table(run.folder / "table.json", table)
    write_solutions(run.folder / "solutions.json", solutions)
    write_json(run.folder / "forecast.json", forecast)
    front = pareto(table, "decode_ms", settings.pareto_points)
    write_solutions(run.folder / "front.json", front)
    say(
        f"search: {settings.target} at {costs['scenario']} -> "
        f"{speedups['decode_ms']:.2f}x decode, {speedups['prefill_ms']:.2f}x prefill, "
        f"{best.costs['memory_mib'] / parent.costs['memory_mib']:.0%} memory, "
        f"{best.costs['params'] / parent.costs['params']:.0%} parameters, "
        f"sum of scores {best.score:.4f}"
    )
    return {"score": best.score, "proved": best.proved, "solutions": len(solutions)}


def join(scores: Mapping[str, Any], costs: Mapping[str, Any]) -> Table:
    """Return the table of every layer's alternatives, each with its score and its costs."""
    alternatives = costs["alternatives"]
    layers = tuple(
        {
            kind: {
                name: Alternative(entry["score"], alternatives[name])
                for name, entry in layer[kind].items()
            }
            for kind in ("attention", "ffn")
        }
        for layer in scores["layers"]
    )
    return Table(layers=layers, fixed=costs["fixed"], units=costs["units"])


def parent_solution(table: Table) -> Solution:
    """Return the parent itself as a solution: of every subblock the first alternative, its own."""
    choices = [(next(iter(layer["attention"])), next(iter(layer["ffn"]))) for layer in table.layers]
    costs = dict(table.fixed)
    for layer, names in zip(table.layers, choices, strict=True):
        for alternatives, name in zip(layer.values(), names, strict=True):
            for cost, value in alternatives[name].costs.items():
                costs[cost] = costs.get(cost, 0.0) + value
    return Solution(score=0.0, proved=True, costs=costs, choices=tuple(choices))
