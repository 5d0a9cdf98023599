"""The models whose times tell what alternatives cost: stacks of equal blocks, and whole ones.

n and 2n of the parent's own block tell what is fixed from what a layer adds; 2n of a block with one
alternative beside the parent's own other half tell what that alternative adds, as it is served. So
every cost takes one model, and no stack is timed twice. Whole models (the parent, random children)
check the sum. Standard library only.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.subblock import subblock
from fretsaw.puzzle.settings import SpaceSettings
from fretsaw.puzzle.space import layer_alternatives

Models = Mapping[str, Sequence[BlockConfig]]  # by name, a block for every layer
PARENT, CHILD = "parent", "child"  # names of whole models, the latter with a number after it


def alternative_names(config: ModelConfig, space: SpaceSettings) -> list[str]:
    """Return the names of all alternatives of all layers, sorted."""
    pairs = (pair for block in config.blocks for pair in layer_alternatives(block, space))
    return sorted({name for names in pairs for name in names})


def own_block(config: ModelConfig) -> BlockConfig:
    """Return the parent's most frequent whole block, beside whose halves alternatives are timed."""
    whole = [b for b in config.blocks if b.attention != "none" and b.ffn != "none"]
    return Counter(whole or config.blocks).most_common(1)[0][0]


def stacks(config: ModelConfig, names: Iterable[str], layers: int) -> dict[str, list[BlockConfig]]:
    """Return `layers` and twice as many of the parent's block, twice as many of every other."""
    own = own_block(config)
    beside = [
        replace(
            own,
            **(
                {
                    "ffn": b.ffn,
                    "intermediate_size": b.intermediate_size,
                    "ffn_precision": b.ffn_precision,
                }
                if name.startswith("ffn")
                else {
                    "attention": b.attention,
                    "num_key_value_heads": b.num_key_value_heads,
                    "attention_precision": b.attention_precision,
                }
            ),
        )
        for name in names
        for b in [subblock(name)]
    ]
    models = {f"{_title(own)} x{layers}": [own] * layers}
    for block in dict.fromkeys([own, *beside]):
        models[f"{_title(block)} x{2 * layers}"] = [block] * (2 * layers)
    return models


def whole_models(
    config: ModelConfig, space: SpaceSettings, count: int, seed: int
) -> dict[str, list[BlockConfig]]:
    """Return the parent and `count` random children, each subblock drawn from its alternatives."""
    chooser = random.Random(seed)
    children = {
        f"{CHILD} {i}": [
            BlockConfig.from_names(
                *(chooser.choice(names) for names in layer_alternatives(block, space))
            )
            for block in config.blocks
        ]
        for i in range(count)
    }
    return {PARENT: list(config.blocks), **children}


def without_twins(models: Models) -> dict[str, Sequence[BlockConfig]]:
    """Leave out every model whose layers a later one has too; of the parent's twins none stays."""
    last = {tuple(blocks): name for name, blocks in models.items()}
    if PARENT in models:
        last[tuple(models[PARENT])] = PARENT
    return {name: blocks for name, blocks in models.items() if last[tuple(blocks)] == name}


def with_first_attention(models: Models, own: BlockConfig) -> dict[str, Sequence[BlockConfig]]:
    """Give layer 0 of every model the parent's attention where it has none: vLLM needs it."""
    own_attention = {"attention": own.attention, "num_key_value_heads": own.num_key_value_heads}
    return {
        name: [replace(blocks[0], **own_attention), *blocks[1:]]
        if blocks[0].attention == "none"
        else blocks
        for name, blocks in models.items()
    }


def _title(block: BlockConfig) -> str:
    return f"{block.attention_name} {block.ffn_name}"
