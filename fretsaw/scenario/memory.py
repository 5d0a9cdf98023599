"""What devices hold of a network, in closed form: weights, keys and values, shared out among n.

In tensor parallel heads, key-value heads and FFN widths are divided; norms are held by each device.
Standard library only.
"""

from dataclasses import replace

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.size import (
    BYTES_PER_ELEMENT,
    block_bytes,
    block_kv_bytes,
    block_params,
    embedding_params,
)
from fretsaw.model.subblock import subblock
from fretsaw.scenario.scenario import MIB, Scenario

GRAM_COPIES = 6  # in float64, while a ridge is chosen


def gram_bytes(width: int) -> int:
    """Return the bytes that refitting a matrix of so many inputs takes."""
    return GRAM_COPIES * 8 * width**2


def share(config: ModelConfig, block: BlockConfig, count: int) -> tuple[ModelConfig, BlockConfig]:
    """Return the network and the block that one of `count` devices holds.

    Fewer key-value heads than devices are held several times over, as engines do.
    """
    heads, kv, width = (
        config.num_attention_heads,
        block.num_key_value_heads,
        block.intermediate_size,
    )
    wrong = None
    if heads % count:
        wrong = f"{heads} query heads"
    elif kv and kv % count and count % kv:
        wrong = f"{kv} key-value heads"
    elif width % count:
        wrong = f"an FFN of width {width}"
    elif config.hidden_size % count:
        wrong = f"a hidden size of {config.hidden_size}"
    if wrong:
        raise ValueError(
            f"scenario: {wrong} cannot be divided among {count} devices in tensor parallel; choose "
            "another number of devices, or leave such alternatives out of the space"
        )
    shared = replace(
        block,
        num_key_value_heads=max(kv // count, 1) if kv else 0,
        intermediate_size=width // count,
    )
    return replace(config, num_attention_heads=heads // count, blocks=(shared,)), shared


def memory_costs(
    config: ModelConfig, name: str, scenario: Scenario, count: int = 1
) -> dict[str, float]:
    """Return `params`, and `memory_mib` of weights and of batch * (in + out) tokens' KV.

    Memory is of all devices together, with what each of them holds a copy of.
    """
    if name.endswith("_none"):
        return {"memory_mib": 0.0, "params": 0}
    whole = subblock(name)
    local, block = share(config, whole, count)
    cached = scenario.batch * (scenario.prompt_tokens + scenario.output_tokens)
    local_bytes = held_bytes(local, block, scenario.dtype, count)
    local_bytes += block_kv_bytes(local, block, scenario.dtype) * cached
    return {"memory_mib": count * local_bytes / MIB, "params": block_params(config, whole).total}


def network_memory(config: ModelConfig, scenario: Scenario, count: int = 1) -> float:
    """Return the MiB of a whole network's weights, keys and values at a scenario."""
    names = [n for block in config.blocks for n in (block.attention_name, block.ffn_name)]
    parts = (memory_costs(config, name, scenario, count)["memory_mib"] for name in names)
    return fixed_memory(config, scenario)["memory_mib"] + sum(parts)


def fixed_memory(config: ModelConfig, scenario: Scenario) -> dict[str, float]:
    """Return memory and parameters of embeddings, head and final norm."""
    params = embedding_params(config)
    return {"memory_mib": params * BYTES_PER_ELEMENT[scenario.dtype] / MIB, "params": params}


def held_bytes(local: ModelConfig, block: BlockConfig, dtype: str, count: int) -> float:
    """Return the bytes of weights one device holds: its share of the matrices, and the norm."""
    num_bytes = block_bytes(local, block, dtype).total
    norm_bytes = local.hidden_size * BYTES_PER_ELEMENT[dtype]
    is_whole = not (block.attention_kind.is_llamas and block.ffn_kind.is_llamas)  # not sized by it
    return (num_bytes - norm_bytes) / count + norm_bytes if is_whole else num_bytes
