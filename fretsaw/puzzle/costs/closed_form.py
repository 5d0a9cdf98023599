"""A search table from closed forms alone: what plans search before anything is measured."""

from collections.abc import Sequence

from fretsaw.model.config import ModelConfig
from fretsaw.model.size import block_params
from fretsaw.puzzle.search.table import Alternative, Table
from fretsaw.scenario.roofline import UNITS, roofline_costs
from fretsaw.scenario.scenario import Scenario


def roofline_table(
    config: ModelConfig, alternatives: tuple[Sequence[str], Sequence[str]], scenario: Scenario
) -> Table:
    """Return a search table of every layer by roofline.

    The score is a proxy: the share of the parent's block parameters that is removed.
    """
    fixed, costs = roofline_costs(config, {n for names in alternatives for n in names}, scenario)
    parent_params = sum(block_params(config, block).total for block in config.blocks)
    layers = []
    for own in config.blocks:
        size = block_params(config, own)
        halves = zip(("attention", "ffn"), (size.attention, size.ffn), alternatives, strict=True)
        layers.append(
            {
                half: {
                    name: Alternative((params - costs[name]["params"]) / parent_params, costs[name])
                    for name in names
                }
                for half, params, names in halves
            }
        )
    return Table(tuple(layers), fixed, UNITS)
