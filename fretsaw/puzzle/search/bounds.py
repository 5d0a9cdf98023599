"""A parent as it is served, at each scenario that was measured, and what a target asks there.

A child may be served otherwise than its parent: with several batch sizes measured, the target
bounds its tokens/s and its memory at each of them, as Puzzle does, against the parent at the first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fretsaw.puzzle.search.explain import Reach
from fretsaw.puzzle.search.program import Solution, sum_of
from fretsaw.puzzle.search.table import Alternative, FusedSpan, Layer, Table
from fretsaw.puzzle.search.table_json import joint_pairs, pairs_from_json
from fretsaw.scenario.scenario import Scenario
from fretsaw.scenario.target import TOTAL_MS, Target, limits

# Of a scenario, by the cost that is spent on them.
TOKENS_OF_PHASE = {"prefill_ms": "prompt_tokens", "decode_ms": "output_tokens"}


@dataclass(frozen=True)
class CostedScenario:
    """One scenario: the table there, and what the parent costs there."""

    scenario: Scenario
    table: Table
    parent: Mapping[str, float]

    def tokens(self, cost: str) -> int:
        """Return how many tokens a time is spent on."""
        fields = (TOKENS_OF_PHASE[phase] for phase in cost.split("+"))
        return self.scenario.batch * sum(getattr(self.scenario, field) for field in fields)


@dataclass(frozen=True)
class Bound:
    """What one target asks: at most `limit` of a cost, in the words of the target."""

    target: Target
    cost: str
    limit: float
    parent_cost: float  # what the target is measured by
    margin: float  # how far inside the target the limit stays

    def reachable(self, cost: float) -> str:
        """Say what a cost comes to, as a target that could be asked for."""
        return self.target.reachable(cost / (1 - self.margin), self.parent_cost)


# --- reading --------------------------------------------------------------------------------------


def join(scores: Mapping[str, Any], costs: Mapping[str, Any]) -> Table:
    """Return the table of every layer's alternatives, each with its score and its costs.

    A layer's scores are of "attention" and "ffn", with "blocks" of joint scores beside them if
    wanted, or of whole "block"s such as gqa2+ffn192. "pairs" reach across layers.
    """
    alternatives = costs["alternatives"]

    def costs_of(name: str) -> dict[str, float]:
        parts = [alternatives[part] for part in name.split("+")]
        return {cost: sum(part[cost] for part in parts) for cost in parts[0]}

    layers: list[Layer] = [
        {
            subblock: {
                name: Alternative(entry["score"], costs_of(name))
                for name, entry in layer[subblock].items()
            }
            for subblock in ("attention", "ffn", "block")
            if subblock in layer
        }
        for layer in scores["layers"]
    ]
    pairs = pairs_from_json(scores.get("pairs", []))
    for i, layer in enumerate(scores["layers"]):
        joint = {name: entry["score"] for name, entry in layer.get("blocks", {}).items()}
        pairs += joint_pairs(i, layers[i], joint)
    saved = ffn_overhead(alternatives) if scores.get("spans") else {}
    spans = [
        FusedSpan(
            first, last, one["score"], {cost: (last - first) * x for cost, x in saved.items()}
        )
        for one in scores.get("spans", [])
        for first, last in [one["layers"]]
    ]
    units = costs.get("units", {})
    return Table(tuple(layers), costs["fixed"], units, tuple(pairs), tuple(spans))


def ffn_overhead(alternatives: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the milliseconds by phase that an FFN takes however narrow: what fusing two saves.

    The intercept of a straight line through the times of all widths, by least squares; never below
    0.
    """
    sized = {name.removeprefix("ffn"): costs for name, costs in alternatives.items()}
    widths = {int(width): costs for width, costs in sized.items() if width.isdigit()}
    if len(widths) < 2:
        raise ValueError(
            "search: the scores have spans of fused FFNs, but the costs know fewer than two widths "
            "of an FFN, so what fusing saves is not known; add ffn_percents to the costs' space"
        )
    found = {}
    for phase in TOKENS_OF_PHASE:
        _, intercept = np.polyfit(list(widths), [costs[phase] for costs in widths.values()], 1)
        found[phase] = max(0.0, float(intercept))
    return found


def parent_solution(table: Table) -> Solution:
    """Return the parent itself as a solution: of every subblock the first alternative, its own."""
    choices = []
    costs = dict(table.fixed)
    for layer in table.layers:
        names = tuple(next(iter(layer[subblock])) for subblock in sorted(layer))
        choices.append(names[0] if len(names) == 1 else names)
        for subblock, name in zip(sorted(layer), names, strict=True):
            for cost, value in layer[subblock][name].costs.items():
                costs[cost] = costs.get(cost, 0.0) + value
    return Solution(score=0.0, proved=True, costs=costs, choices=tuple(choices))


def read_served(scores: Mapping[str, Any], costs: Mapping[str, Any]) -> list[CostedScenario]:
    """Return every scenario of a cost table; the first is how the parent is served."""
    others = [o for o in costs.get("scenarios", []) if o["scenario"] != costs["scenario"]]
    found = []
    for one in (costs, *others):
        table = join(scores, {"units": costs.get("units", {}), **one})
        parent = parent_solution(table).costs
        found.append(CostedScenario(Scenario.parse(one["scenario"]), table, parent))
    return found


# --- what is asked --------------------------------------------------------------------------------


def where_to_search(
    served: Sequence[CostedScenario], targets: Iterable[Target]
) -> list[CostedScenario]:
    """Return the scenarios among which the best child is looked for.

    Those of the first one's tokens, precision and device, of whatever batch; or the one that all
    targets name.
    """
    named = [named_by(target, served) for target in targets]
    if all(named):
        return named[0]
    first = served[0].scenario
    return [one for one in served if replace(one.scenario, batch=first.batch) == first]


def named_by(target: Target, served: Sequence[CostedScenario]) -> list[CostedScenario]:
    """Return the scenarios a target names, if it names any."""
    if not target.at:
        return []
    found = [one for one in served if one.scenario.agrees(target.at)]
    if not found:
        measured = "; ".join(str(one.scenario) for one in served)
        raise ValueError(f"target: {target} names no scenario that was measured: {measured}")
    return found


def bounds_at(
    here: CostedScenario, served: Sequence[CostedScenario], targets: Iterable[Target], margin: float
) -> tuple[Table, list[Bound]]:
    """Return the bounds that the targets set at one scenario, and the table that has their costs.

    A speed-up or a share is of the parent at the first scenario, tokens/s with tokens/s. A target
    that names scenarios bounds the costs there, against the parent there, whatever the scenario
    searched. Times are bounded `margin` tighter, since they are measured with noise.
    """
    table, bounds = here.table, []
    for target in targets:
        for at in named_by(target, served) or [here]:
            parent = dict((at if target.at else served[0]).parent)
            name = target.cost
            is_time = name in (*TOKENS_OF_PHASE, TOTAL_MS)
            if is_time and not target.at:
                scale = here.tokens(name) / served[0].tokens(name)
                parent |= {part: parent[part] * scale for part in TOKENS_OF_PHASE}
            ((_, limit),) = limits([replace(target, at="")], parent).items()
            if at is not here:
                table = _with_costs(table, at)
                name = "+".join(f"{part} at {at.scenario}" for part in name.split("+"))
            kept = margin if is_time else 0.0
            parent_cost = sum_of(parent, target.cost)
            bounds.append(Bound(target, name, limit * (1 - kept), parent_cost, kept))
    return table, bounds


def _with_costs(table: Table, at: CostedScenario) -> Table:
    """Return a table with the costs at another scenario beside its own, by "cost at scenario"."""
    if any(f"{name} at {at.scenario}" in table.cost_names for name in at.table.cost_names):
        return table
    layers = tuple(
        {
            subblock: {
                name: replace(
                    own, costs={**own.costs, **_named(theirs[subblock][name].costs, at.scenario)}
                )
                for name, own in alternatives.items()
            }
            for subblock, alternatives in layer.items()
        }
        for layer, theirs in zip(table.layers, at.table.layers, strict=True)
    )
    fixed = {**table.fixed, **_named(at.table.fixed, at.scenario)}
    spans = tuple(
        replace(span, saved={**span.saved, **_named(theirs.saved, at.scenario)})
        for span, theirs in zip(table.spans, at.table.spans, strict=True)
    )
    return replace(table, layers=layers, fixed=fixed, spans=spans)


def _named(costs: Mapping[str, float], scenario: Scenario) -> dict[str, float]:
    return {f"{name} at {scenario}": value for name, value in costs.items()}


def limits_of(bounds: Iterable[Bound]) -> dict[str, float]:
    """Return the limits of the search, the tightest where several are on one cost."""
    found: dict[str, float] = {}
    for bound in bounds:
        found[bound.cost] = min(bound.limit, found.get(bound.cost, bound.limit))
    return found


# --- why not --------------------------------------------------------------------------------------


def explain_targets(reach: Reach, bounds: Sequence[Bound], scenario: Scenario) -> str:
    """Say in the targets' words what was asked, what is reachable, and at which scenario."""
    tightest = {
        cost: min((b for b in bounds if b.cost == cost), key=lambda b: b.limit)
        for cost in reach.limits
    }

    def words(costs: Mapping[str, float]) -> list[str]:
        asked = reach.limits
        return [
            f"{tightest[name].reachable(value)} ({name} {value:.4g}, {asked[name]:.4g} asked)"
            for name, value in costs.items()
        ]

    asked = " and ".join(str(bound.target) for bound in bounds)
    if len(reach.limits) == 1:
        found = " and ".join(words(reach.alone))
    else:
        found = " or ".join(f"{one} with the rest as asked" for one in words(reach.relaxed))
        if reach.nearest:
            nearest = " with ".join(words(reach.nearest))
            found += f"{', or ' if found else ''}missing all alike, {nearest}"
        found = found or "alone, " + " and ".join(words(reach.alone))
    return f"search: no child reaches {asked} at {scenario}; reachable: {found}"
