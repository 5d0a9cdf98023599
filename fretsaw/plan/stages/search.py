"""What searching takes, and the child that stands for what it will find."""

import json
from dataclasses import replace
from pathlib import Path

from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.contradictions import check_searched
from fretsaw.plan.stage_plan import Networks, Recipe, StagePlan
from fretsaw.plan.work import Hardware, Shapes, Work
from fretsaw.puzzle.costs.closed_form import roofline_table
from fretsaw.puzzle.search.explain import Infeasible
from fretsaw.puzzle.search.solutions import search_table
from fretsaw.puzzle.search.table import Table
from fretsaw.puzzle.settings import SearchSettings, SpaceSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.scenario.scenario import Scenario, parse_scenarios
from fretsaw.scenario.target import limits, parse_targets
from fretsaw.stage.progress import say


def search(s: SearchSettings, at: Shapes, on: Hardware) -> Work:
    """A few solves of the program, on the host."""
    layers = at["child"].num_hidden_layers
    solves = s.num_solutions + s.pareto_points + 6
    return Work(seconds=0.02 * solves * (1 + layers / 32), disk=4000.0 * layers)


PROXY_GAP = 1e-3  # of the search: its score here is only a proxy, and full of ties


def child_of(
    parent: ModelConfig, target: str, space: SpaceSettings, scenario: Scenario, hardware: Hardware
) -> ModelConfig:
    """Return the child that keeps most parameters at a target, by roofline; else the parent."""
    here = replace(scenario, device=hardware.device.name)
    names = {n for b in parent.blocks for pair in layer_alternatives(b, space) for n in pair}
    attention = tuple(n for n in names if not n.startswith("ffn"))
    whole = roofline_table(parent, (attention, tuple(names - {*attention})), here)
    layers = []
    for block, layer in zip(parent.blocks, whole.layers, strict=True):
        own = zip(("attention", "ffn"), layer_alternatives(block, space), strict=True)
        layers.append({half: {n: layer[half][n] for n in ordered} for half, ordered in own})
    table = Table(tuple(layers), whole.fixed, whole.units)
    costs = dict(table.fixed)
    for layer in table.layers:
        for alternatives in layer.values():
            for cost, value in next(iter(alternatives.values())).costs.items():
                costs[cost] += value
    targets = [replace(one, at="") for one in parse_targets(target)]
    try:
        child = search_table(table, limits(targets, costs), gap=PROXY_GAP)[0]
    except Infeasible as error:
        say(
            f"plan: {target}: {error}; what follows the search is sized for a child like the parent"
        )
        return parent
    blocks = blocks_from_names((choice[0], choice[1]) for choice in child.choices)
    return replace(parent, blocks=blocks).in_full


def network_of(stage: Stage, networks: Networks, recipe: Recipe) -> tuple[str, ModelConfig]:
    """Return the child that stands for what the search will find."""
    costs = recipe.stage_of(str(stage.inputs["costs"]))
    scores = recipe.stage_of(str(stage.inputs["scores"]))
    is_made = costs.name in recipe.shapes
    parent = (
        recipe.shapes[costs.name]["parent"]
        if is_made
        else recipe.config_of(str(costs.inputs["parent"]))
    )
    check_searched(stage, costs, scores, parent)
    space, scenario = scores.settings.space, parse_scenarios(costs.settings.scenario)[0]
    child = child_of(parent, stage.settings.target, space, scenario, recipe.hardware)
    return "child", child


def stand_in(stage: Stage, at: Shapes, made: dict[str, Path]) -> None:
    """Write the child that is foreseen as if it had been found."""
    out = made[stage.name]
    out.mkdir(parents=True)
    choices = [[b.attention_name, b.ffn_name] for b in at["child"].blocks]
    solution = {"score": 0.0, "proved": False, "costs": {}, "choices": choices}
    (out / "solutions.json").write_text(json.dumps([solution] * stage.settings.num_solutions))
    (out / "forecast.json").write_text(json.dumps({"target": stage.settings.target}))


SEARCH = StagePlan(work=search, stand_in=stand_in, network=network_of)
