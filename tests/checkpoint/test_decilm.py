"""DeciLM's config.json: the published key set to the letter, both dialects read."""

import json
from dataclasses import replace
from typing import Any

import pytest

from fretsaw.checkpoint import decilm
from fretsaw.model.config import ModelConfig, blocks_from_names

PUBLISHED_KEYS = {
    *("architectures", "model_type", "auto_map", "hidden_size", "num_attention_heads"),
    *("num_hidden_layers", "hidden_act", "intermediate_size", "num_key_value_heads"),
    *("attention_bias", "mlp_bias", "attention_dropout", "rms_norm_eps", "initializer_range"),
    *("max_position_embeddings", "rope_theta", "rope_scaling", "tie_word_embeddings"),
    *("vocab_size", "bos_token_id", "eos_token_id", "pretraining_tp", "use_cache"),
    *("torch_dtype", "block_configs"),
}
ATTENTION_KEYS = {
    *("n_heads_in_group", "no_op", "replace_with_linear", "sparsify", "window_length"),
    *("num_sink_tokens", "use_prefill_window_in_sink_attention", "unshifted_sink"),
}
FFN_KEYS = {"ffn_mult", "no_op", "replace_with_linear", "sparsify"}
CHOICES = [
    ("gqa8", "ffn256"),
    ("gqa1", "ffn512"),
    ("attn_none", "ffn_none"),
    ("attn_linear", "ffn_linear"),
    ("attn_none", "ffn768"),
]


def make(choices: list[tuple[str, str]] = CHOICES, **changes) -> ModelConfig:
    config = ModelConfig(
        blocks=blocks_from_names(choices),
        vocab_size=64,
        hidden_size=128,
        num_attention_heads=8,
        head_dim=16,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
    return replace(config, **changes)


def through_json(config: ModelConfig) -> dict[str, Any]:
    return json.loads(json.dumps(decilm.config_to_json(config, dtype="bf16")))


def test_published_dialect_has_exactly_its_keys() -> None:
    raw = through_json(make())
    assert set(raw) == PUBLISHED_KEYS | {"dtype"}
    assert raw["model_type"] == "nemotron-nas"
    assert raw["architectures"] == ["DeciLMForCausalLM"]
    for block in raw["block_configs"]:
        assert set(block) == {"attention", "ffn"}
        assert set(block["attention"]) == ATTENTION_KEYS
        assert set(block["ffn"]) == FFN_KEYS
        for part, size in (("attention", "n_heads_in_group"), ("ffn", "ffn_mult")):
            is_replaced = block[part]["no_op"] or block[part]["replace_with_linear"]
            assert (block[part][size] is None) == is_replaced
    assert raw["block_configs"][0]["ffn"]["ffn_mult"] == 3.0
    assert isinstance(raw["block_configs"][0]["ffn"]["ffn_mult"], float)
    assert raw["block_configs"][1]["attention"]["n_heads_in_group"] == 8


@pytest.mark.parametrize(
    "config",
    [
        make(),
        make([*CHOICES, ("gqa2", "ffn100")]),
        make(head_dim=32),
        make(tie_word_embeddings=True, rope_theta=5e5),
    ],
    ids=["published", "any_widths", "head_dim", "tied"],
)
def test_written_configs_are_read_back_equal(config: ModelConfig) -> None:
    assert decilm.config_from_json(through_json(config)) == config


def test_other_widths_are_written_as_they_are() -> None:
    blocks = through_json(make([*CHOICES, ("gqa2", "ffn100")]))["block_configs"]
    assert [block["ffn"]["intermediate_size"] for block in blocks] == [
        256,
        512,
        None,
        None,
        768,
        100,
    ]
    assert all("ffn_mult" not in block["ffn"] for block in blocks)


def test_every_multiple_of_256_survives_as_a_multiplier() -> None:
    for hidden in (64, 576, 2048, 4096, 8192, 16384):
        for width in range(256, 32 * hidden, 256 * max(1, hidden // 512)):
            assert decilm.width_of(decilm.ffn_mult_of(width, hidden), hidden) == width


def test_multipliers_of_the_published_models() -> None:
    assert [decilm.width_of(m, 8192) for m in (5.25, 1.0, 0.5)] == [28672, 5632, 2816]
    assert [decilm.width_of(m, 16384) for m in (4.875, 36.5625, 39.0)] == [53248, 399360, 425984]


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "attention",
            {"window_length": 512},
            r"block_configs\[0\].attention: window_length is 512",
        ),
        ("attention", {"sparsify": [1]}, "sparsify"),
        ("attention", {"num_sink_tokens": 4}, "num_sink_tokens is 4"),
        ("attention", {"mamba": {"state": 1}}, "mamba"),
        ("attention", {"n_heads_in_group": 3}, "n_heads_in_group is 3.* 8 query heads"),
        ("attention", {"n_heads_in_group": None}, "n_heads_in_group is None"),
        ("attention", {"no_op": True, "replace_with_linear": True}, "both no_op and"),
        ("ffn", {"moe": {"num_experts": 4}}, "moe"),
        ("ffn", {"gated": False}, "gated is False"),
        ("ffn", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("ffn", {"ffn_mult": None}, "neither ffn_mult nor intermediate_size"),
    ],
)
def test_other_networks_are_refused(part: str, changes: dict[str, Any], message: str) -> None:
    raw = through_json(make())
    raw["block_configs"][0][part].update(changes)
    with pytest.raises(ValueError, match=message):
        decilm.config_from_json(raw)


def test_one_entry_per_layer() -> None:
    raw = through_json(make())
    with pytest.raises(ValueError, match="5 block_configs for 7 num_hidden_layers"):
        decilm.config_from_json({**raw, "num_hidden_layers": 7})
    with pytest.raises(ValueError, match="no block_configs for 5"):
        decilm.config_from_json({**raw, "block_configs": None})
