"""What is trained of a layer: its alternatives one by one, or pairs that a search has chosen."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fretsaw.model.config import BlockConfig, ModelConfig, without_precision
from fretsaw.puzzle.library.slices import pair_name
from fretsaw.puzzle.search.solutions import read_solutions
from fretsaw.puzzle.settings import BldSettings
from fretsaw.puzzle.space import layer_alternatives

Scope = Literal["attention", "ffn", "block"]  # what of a layer is trained together


@dataclass(frozen=True)
class Candidate:
    """What is trained: one subblock beside the parent's other half, or the whole block."""

    name: str
    scope: Scope
    wanted: BlockConfig


def decoupled(config: ModelConfig, settings: BldSettings, layer: int) -> list[Candidate]:
    """Return a layer's alternatives that have weights, each beside the parent's other half."""
    space = replace(settings.space, precisions=())  # trained in full, and rounded after
    attention, ffn = layer_alternatives(config.blocks[layer], space)
    return [
        Candidate(name, "attention", BlockConfig.from_names(name, ffn[0]))
        for name in attention[1:]
        if name != "attn_none"
    ] + [
        Candidate(name, "ffn", BlockConfig.from_names(attention[0], name))
        for name in ffn[1:]
        if name != "ffn_none"
    ]


def coupled(config: ModelConfig, search: Path, *, cross: bool) -> list[list[Candidate]]:
    """Return the changed pairs of every layer in a search's solutions.

    With `cross`, every attention that a layer has there with every FFN that it has there.
    """
    solutions = read_solutions(search)
    num_layers = len(solutions[0]["choices"])
    if num_layers != config.num_hidden_layers:
        raise ValueError(
            f"{search}: solutions of {num_layers} layers, but the parent has "
            f"{config.num_hidden_layers}; give a search of this parent's scores"
        )
    found = []
    for layer, block in enumerate(config.blocks):
        pairs = {tuple(map(without_precision, s["choices"][layer])) for s in solutions}
        if cross:
            pairs = {(a, f) for a, _ in pairs for _, f in pairs}
        pairs -= {(block.attention_name, block.ffn_name), ("attn_none", "ffn_none")}
        found.append(
            [
                Candidate(pair_name(a, f), "block", BlockConfig.from_names(a, f))
                for a, f in sorted(pairs)
            ]
        )
    return found
