"""DeciLM's config.json (`nemotron-nas`) <-> `ModelConfig`: the layout whose layers may differ.

Standard library only. Two dialects are read: NVIDIA's published one (`n_heads_in_group`,
`ffn_mult`) and the later one that names the FFN's width (`intermediate_size`). The first is what
most engines read, so it is written wherever it can express the widths: multiples of 256.
"""

from collections.abc import Mapping
from typing import Any

from fretsaw.checkpoint.llama import (
    refuse_other_values,
    required_int,
    shared_from_json,
    shared_to_json,
)
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.kinds import Half, SubblockKind, kinds_of

MODEL_TYPE = "nemotron-nas"
AUTO_MAP = {
    "AutoConfig": "configuration_decilm.DeciLMConfig",
    "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
}
_OTHER_NETWORK = (
    "choose a checkpoint of full attention and SwiGLU, linear and absent subblocks only"
)
_NEUTRAL_MODEL = {
    "o_proj_bias": ((None, False), _OTHER_NETWORK),
    "position_embedding_type": ((None, "rope"), _OTHER_NETWORK),
}
_NEUTRAL_ATTENTION = {
    "sparsify": ((None,), _OTHER_NETWORK),
    "window_length": ((None,), _OTHER_NETWORK),
    "num_sink_tokens": ((None,), _OTHER_NETWORK),
    "use_prefill_window_in_sink_attention": ((None, False), _OTHER_NETWORK),
    "unshifted_sink": ((None, False), _OTHER_NETWORK),
    "mamba": ((None,), _OTHER_NETWORK),
    "llama4": ((None,), _OTHER_NETWORK),
}
_NEUTRAL_FFN = {
    "sparsify": ((None,), _OTHER_NETWORK),
    "moe": ((None,), _OTHER_NETWORK),
    "gated": ((None, True), _OTHER_NETWORK),
    "hidden_act": ((None, "silu", "swish"), _OTHER_NETWORK),
}


def width_of(ffn_mult: float, hidden_size: int) -> int:
    """Return the FFN width an `ffn_mult` stands for: 2/3 mult * hidden, rounded up to 256."""
    width = int(2 * ffn_mult * hidden_size / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


def ffn_mult_of(width: int, hidden_size: int) -> float:
    """Return the `ffn_mult` of a width; the inverse of `width_of` for multiples of 256."""
    return round(3 * width / (2 * hidden_size), 6)


def blocks_from_mults(
    text: str, *, hidden_size: int, num_key_value_heads: int
) -> tuple[BlockConfig, ...]:
    """Read a table of blocks as published configs state them, layer 0 first.

    "0-3 a/5.25; 4 -/2.625; 5-6 none": layers 0 to 3 keep their attention and have an FFN of
    `ffn_mult` 5.25, layer 4 has an FFN alone, layers 5 and 6 have nothing.
    """
    blocks: list[BlockConfig] = []
    for part in text.replace("\n", " ").split(";"):
        layers, _, halves = part.strip().partition(" ")
        first, _, last = layers.partition("-")
        assert int(first) == len(blocks), f"{part.strip()!r}: layer {len(blocks)} comes next"
        attention, _, mult = halves.strip().partition("/")
        block = BlockConfig(
            attention="gqa" if attention == "a" else "none",
            num_key_value_heads=num_key_value_heads if attention == "a" else 0,
            ffn="swiglu" if mult else "none",
            intermediate_size=width_of(float(mult), hidden_size) if mult else 0,
        )
        blocks += [block] * (int(last or first) - int(first) + 1)
    return tuple(blocks)


# --- reading -------------------------------------------------------------------------------------


def config_from_json(raw: Mapping[str, Any]) -> ModelConfig:
    """Read a DeciLM config.json of either dialect."""
    refuse_other_values(raw, _NEUTRAL_MODEL)
    shared = shared_from_json(raw)
    entries = raw.get("block_configs")
    num_layers = required_int(raw, "num_hidden_layers")
    if not isinstance(entries, list) or len(entries) != num_layers:
        found = len(entries) if isinstance(entries, list) else "no"
        raise ValueError(
            f"config.json: {found} block_configs for {num_layers} num_hidden_layers; "
            "there must be one per layer"
        )
    blocks = [
        _block_from_json(entry, i, shared["num_attention_heads"], shared["hidden_size"])
        for i, entry in enumerate(entries)
    ]
    return ModelConfig(blocks=tuple(blocks), **shared)


def _block_from_json(
    entry: Mapping[str, Any], layer: int, num_heads: int, hidden: int
) -> BlockConfig:
    where = f"config.json: block_configs[{layer}]"
    refuse_other_values(entry, {"parallel_blocks": ((None,), _OTHER_NETWORK)}, where)
    attention, ffn = entry.get("attention") or {}, entry.get("ffn") or {}
    refuse_other_values(attention, _NEUTRAL_ATTENTION, f"{where}.attention")
    refuse_other_values(ffn, _NEUTRAL_FFN, f"{where}.ffn")
    attention_kind = _kind(attention, "attention", f"{where}.attention")
    ffn_kind = _kind(ffn, "ffn", f"{where}.ffn")
    num_key_value_heads = width = 0
    if attention_kind.has_size:
        group = attention.get("n_heads_in_group")
        if not group or num_heads % group:
            raise ValueError(
                f"{where}.attention: n_heads_in_group is {group!r}, which does not divide the "
                f"{num_heads} query heads; correct it, or set no_op or replace_with_linear"
            )
        num_key_value_heads = num_heads // group
    if ffn_kind.has_size:
        mult, width = ffn.get("ffn_mult") or 0, ffn.get("intermediate_size") or 0
        if not mult and not width:
            raise ValueError(
                f"{where}.ffn: neither ffn_mult nor intermediate_size; "
                "give one, or set no_op or replace_with_linear"
            )
        width = width or width_of(mult, hidden)
    return BlockConfig(attention_kind.name, num_key_value_heads, ffn_kind.name, width)


def _kind(subblock: Mapping[str, Any], half: Half, where: str) -> SubblockKind:
    """Return the kind whose flag is set, the plain Llama's where none is."""
    full, *others = kinds_of(half)
    found = [kind for kind in others if subblock.get(kind.flag)]
    if len(found) > 1:
        flags = sorted(kind.flag for kind in found)
        raise ValueError(f"{where}: both {flags[0]} and {flags[1]} are set; unset one")
    return found[0] if found else full


def _flags(half: Half, name: str) -> dict[str, bool]:
    return {kind.flag: kind.name == name for kind in reversed(kinds_of(half)) if kind.flag}


# --- writing -------------------------------------------------------------------------------------


def config_to_json(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """Write a DeciLM config.json, in NVIDIA's dialect if it can express every width."""
    raw = {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": AUTO_MAP,
        **shared_to_json(config, dtype=dtype),
        "intermediate_size": None,
        "num_key_value_heads": None,
        "block_configs": [
            {"attention": _attention_to_json(config, block), "ffn": _ffn_to_json(config, block)}
            for block in config.blocks
        ],
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raw["head_dim"] = config.head_dim
    return raw


def _attention_to_json(config: ModelConfig, block: BlockConfig) -> dict[str, Any]:
    is_full = block.attention_kind.has_size
    group = config.num_attention_heads // block.num_key_value_heads if is_full else None
    return {
        "n_heads_in_group": group,
        **_flags("attention", block.attention),
        "sparsify": None,
        "window_length": None,
        "num_sink_tokens": None,
        "use_prefill_window_in_sink_attention": False,
        "unshifted_sink": False,
    }


def _ffn_to_json(config: ModelConfig, block: BlockConfig) -> dict[str, Any]:
    width, is_full = block.intermediate_size, block.ffn_kind.has_size
    if _has_published_dialect(config):
        size = {"ffn_mult": ffn_mult_of(width, config.hidden_size) if is_full else None}
    else:
        size = {"intermediate_size": width if is_full else None}
    return {
        **size,
        **_flags("ffn", block.ffn),
        "sparsify": None,
    }


def _has_published_dialect(config: ModelConfig) -> bool:
    """Whether every FFN width survives being written as an `ffn_mult`."""
    hidden = config.hidden_size
    widths = {block.intermediate_size for block in config.blocks if block.intermediate_size}
    return all(width_of(ffn_mult_of(width, hidden), hidden) == width for width in widths)
