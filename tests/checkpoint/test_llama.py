"""Llama's config.json: both spellings read, the legacy one written, other networks refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig

from fretsaw.checkpoint import folder, llama
from fretsaw.model.config import ModelConfig, RopeScaling

MINIMAL = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
}
LLAMA3_ROPE = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def test_what_an_old_config_leaves_out() -> None:
    config = llama.config_from_json(MINIMAL)
    assert config.head_dim == 8
    assert config.blocks[0].num_key_value_heads == 4
    assert config.rope_theta == 10000.0
    assert config.rope_scaling is None
    assert config.eos_token_ids == ()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3_ROPE, "rope_type": None, "type": "llama3"}},
        {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 5e5}},
    ],
    ids=["legacy", "oldest", "rope_parameters"],
)
def test_every_spelling_of_rotary_settings(rope: dict[str, Any]) -> None:
    scaling = rope.get("rope_scaling") or {}
    if scaling.get("rope_type", "") is None:
        del scaling["rope_type"]
    config = llama.config_from_json({**MINIMAL, **rope})
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling(
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


def test_mistral_without_a_window() -> None:
    raw = {**MINIMAL, "model_type": "mistral", "sliding_window": None, "head_dim": 16}
    raw["num_key_value_heads"] = 2
    assert llama.config_from_json(raw).head_dim == 16
    saved = MistralConfig(**{k: v for k, v in raw.items() if k != "model_type"}).to_diff_dict()
    assert llama.config_from_json(saved).head_dim == 16


def test_written_configs_are_read_back_equal() -> None:
    raw = {
        **MINIMAL,
        "rope_scaling": LLAMA3_ROPE,
        "rope_theta": 5e5,
        "head_dim": 16,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
    }
    config = llama.config_from_json(raw)
    written = json.loads(json.dumps(llama.config_to_json(config, dtype="bf16")))
    assert llama.config_from_json(written) == config
    assert written["rope_scaling"] == LLAMA3_ROPE
    assert written["rope_theta"] == 5e5
    assert written["torch_dtype"] == written["dtype"] == "bfloat16"
    theirs = LlamaConfig(**written)
    assert theirs.rope_parameters == {**LLAMA3_ROPE, "rope_theta": 5e5}
    assert llama.config_from_json(theirs.to_diff_dict()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"model_type": "mistral"}, "sliding_window is 4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is .*bits"),
        ({"block_configs": []}, "block_configs is"),
        ({"per_layer_config": {}}, "per_layer_config is"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope type 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "without low_freq_factor"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": 5}, "no multiple of the 5"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
    ],
)
def test_other_networks_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llama.config_from_json({**MINIMAL, **changes})


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="'fp8' cannot be saved; use one of fp32, bf16, fp16"):
        llama.config_to_json(llama.config_from_json(MINIMAL), dtype="fp8")


def test_shared_checkpoints(model_folder: Path) -> None:
    config = folder.read_config(model_folder)
    assert isinstance(config, ModelConfig)
    assert config.num_hidden_layers == 5
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (1, 2)  # generation_config.json has both
