"""Llama's config.json <-> `ModelConfig`: with `decilm.py`, all that knows a foreign config key.

Standard library only. Covers the Llama family and what shares its network: Llama 2 to 3.3,
SmolLM2, TinyLlama, R1-Distill-Llama, and Mistral without a sliding window. A key that would
change the network in a way ours does not follow is refused, never ignored.
"""

from collections.abc import Mapping
from typing import Any

from fretsaw.model.config import ModelConfig, RopeScaling

DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

# key -> (values under which the network is ours, what to do about any other)
_NEUTRAL_VALUES: dict[str, tuple[tuple[Any, ...], str]] = {
    "attention_bias": ((None, False), "choose a checkpoint without attention biases"),
    "mlp_bias": ((None, False), "choose a checkpoint without FFN biases"),
    "hidden_act": ((None, "silu", "swish"), "choose a checkpoint whose FFN is a SwiGLU"),
    "sliding_window": ((None,), "choose one without a window, or set null if none was trained"),
    "quantization_config": ((None,), "save the checkpoint in bf16 or fp32 first"),
    "partial_rotary_factor": ((None, 1), "choose a checkpoint that rotates whole heads"),
    "per_layer_config": ((None,), "convert the checkpoint to the DeciLM layout first"),
}


def config_from_json(raw: Mapping[str, Any]) -> ModelConfig:
    """Read the config.json of a plain Llama or Mistral."""
    if raw.get("model_type") == "mistral":
        raw = {"sliding_window": 4096, "num_key_value_heads": 8, **raw}  # what absent keys mean
    refuse_other_values(raw, _NEUTRAL_VALUES)
    refuse_other_values(raw, {"block_configs": ((None,), "convert it to the DeciLM layout first")})
    shared = shared_from_json(raw)
    num_key_value_heads = raw.get("num_key_value_heads") or shared["num_attention_heads"]
    return ModelConfig.uniform(
        num_hidden_layers=required_int(raw, "num_hidden_layers"),
        num_key_value_heads=num_key_value_heads,
        intermediate_size=required_int(raw, "intermediate_size"),
        **shared,
    )


def config_to_json(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """Write the config.json of a plain Llama; every layer must be the same."""
    assert config.is_homogeneous, "a Llama's layers are all the same; the others are DeciLM's"
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shared_to_json(config, dtype=dtype),
        "head_dim": config.head_dim,
        "intermediate_size": config.blocks[0].intermediate_size,
        "num_key_value_heads": config.blocks[0].num_key_value_heads,
    }


# --- what Llama and DeciLM spell the same --------------------------------------------------------


def shared_from_json(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `ModelConfig` fields that are no layer's own."""
    refuse_other_values(raw, _NEUTRAL_VALUES)
    hidden_size = required_int(raw, "hidden_size")
    num_heads = required_int(raw, "num_attention_heads")
    if not raw.get("head_dim") and hidden_size % num_heads:
        raise ValueError(
            f"config.json: hidden_size {hidden_size} is no multiple of the {num_heads} "
            "num_attention_heads, so the heads have no size; give head_dim"
        )
    rope_theta, rope_scaling = _rope_from_json(raw)
    return {
        "vocab_size": required_int(raw, "vocab_size"),
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "head_dim": raw.get("head_dim") or hidden_size // num_heads,
        "rms_norm_eps": raw.get("rms_norm_eps", 1e-6),
        "max_position_embeddings": raw.get("max_position_embeddings", 2048),
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "bos_token_id": raw.get("bos_token_id"),
        "eos_token_ids": token_ids(raw.get("eos_token_id")),
        "pad_token_id": _pad_from_json(raw),
    }


def shared_to_json(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """Return the keys that are no layer's own.

    Rotary settings are written in the legacy spelling (`rope_theta`, `rope_scaling`), which every
    reader understands; with `rope_parameters` alone some fall back to defaults without a word.
    """
    if dtype not in DTYPE_NAMES:
        raise ValueError(f"dtype {dtype!r} cannot be saved; use one of {', '.join(DTYPE_NAMES)}")
    eos = config.eos_token_ids
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": config.rms_norm_eps,
        "initializer_range": 0.02,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling_to_json(config.rope_scaling),
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos) or None,
        **({} if config.pad_token_id is None else {"pad_token_id": config.pad_token_id}),
        "pretraining_tp": 1,
        "use_cache": True,
        "torch_dtype": DTYPE_NAMES[dtype],
        "dtype": DTYPE_NAMES[dtype],
    }


def refuse_other_values(
    raw: Mapping[str, Any],
    neutral: Mapping[str, tuple[tuple[Any, ...], str]],
    where: str = "config.json",
) -> None:
    """Raise where a key has a value under which the network would not be ours."""
    for key, (accepted, remedy) in neutral.items():
        if raw.get(key) not in accepted:
            raise ValueError(
                f"{where}: {key} is {raw[key]!r}, which this network does not implement; {remedy}"
            )


def required_int(raw: Mapping[str, Any], key: str) -> int:
    """Return a positive integer that the config must have."""
    value = raw.get(key)
    if not isinstance(value, int) or value <= 0:
        raise ValueError(
            f"config.json: {key} is {value!r}, but must be a positive integer; "
            "give the folder of a whole checkpoint"
        )
    return value


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """Return a token id, or a list of them, as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _pad_from_json(raw: Mapping[str, Any]) -> int | None:
    """Return the id that fills rows; one that is not embedded (old configs say -1) is none."""
    pad = raw.get("pad_token_id")
    return pad if isinstance(pad, int) and 0 <= pad < required_int(raw, "vocab_size") else None


def _rope_from_json(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    rope = {**(raw.get("rope_parameters") or {}), **(raw.get("rope_scaling") or {})}
    refuse_other_values(rope, {"partial_rotary_factor": _NEUTRAL_VALUES["partial_rotary_factor"]})
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type == "default":
        return theta, None
    if rope_type != "llama3":
        raise ValueError(
            f"config.json: rope type {rope_type!r} is not implemented, only 'default' and "
            "'llama3'; choose another checkpoint"
        )
    keys = RopeScaling.__dataclass_fields__
    missing = [key for key in keys if key not in rope]
    if missing:
        raise ValueError(
            f"config.json: rope type 'llama3' without {', '.join(missing)}; "
            "copy rope_scaling from the original checkpoint"
        )
    return theta, RopeScaling(**{key: rope[key] for key in keys})


def _scaling_to_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {
        "factor": scaling.factor,
        "high_freq_factor": scaling.high_freq_factor,
        "low_freq_factor": scaling.low_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
        "rope_type": "llama3",
    }
