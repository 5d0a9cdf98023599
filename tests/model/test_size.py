"""Closed-form sizes equal what the modules hold."""

from dataclasses import replace

import pytest

from fretsaw.engine.runner import Runner
from fretsaw.engine.weights import prepare
from fretsaw.model import size
from fretsaw.model.config import BlockConfig, ModelConfig, blocks_from_names
from fretsaw.model.decoder import Decoder

CONFIG = ModelConfig.uniform(
    num_hidden_layers=2,
    num_key_value_heads=2,
    intermediate_size=24,
    vocab_size=40,
    hidden_size=32,
    num_attention_heads=4,
    head_dim=16,
)
MIX = blocks_from_names(
    [
        ("gqa4", "ffn20"),
        ("attn_linear", "ffn_none"),
        ("attn_none", "ffn_linear"),
        ("attn_none", "ffn_none"),
        ("gqa1", "ffn8"),
    ]
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("blocks", [CONFIG.blocks, MIX], ids=["uniform", "mix"])
def test_num_params_is_the_sum_over_parameters(blocks: tuple[BlockConfig, ...], tied: bool) -> None:
    config = replace(CONFIG, blocks=blocks, tie_word_embeddings=tied)
    assert size.num_params(config) == sum(p.numel() for p in Decoder(config).parameters())


def test_kv_bytes_are_what_a_cache_takes() -> None:
    config = replace(CONFIG, blocks=MIX)
    decoder = Decoder(config)
    runner = Runner(decoder, 3, page_size=8, weights=prepare(decoder))
    tensors = (*runner.keys, *runner.values)
    assert size.kv_bytes(config, "fp32") * 3 * 8 == sum(t.nbytes for t in tensors)


def test_names_and_blocks_are_inverse() -> None:
    names = [("gqa4", "ffn20"), ("attn_linear", "ffn_none"), ("attn_none", "ffn_linear")]
    assert [(b.attention_name, b.ffn_name) for b in blocks_from_names(names)] == names


@pytest.mark.parametrize(
    ("attention", "ffn", "message"),
    [("gqa", "ffn8", "'gqa' names no attention"), ("gqa2", "wide", "'wide' names no FFN")],
)
def test_unknown_names_are_refused(attention: str, ffn: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockConfig.from_names(attention, ffn)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="layer 0 has 3 key-value heads"):
        replace(CONFIG, blocks=blocks_from_names([("gqa3", "ffn8")]))
    with pytest.raises(ValueError, match="head_dim 15 is odd"):
        replace(CONFIG, head_dim=15)
    with pytest.raises(ValueError, match="no layers"):
        replace(CONFIG, blocks=())
    with pytest.raises(ValueError, match="at least one"):
        BlockConfig("gqa", 0, "swiglu", 8)
