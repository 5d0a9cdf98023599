"""The alternatives of a layer: Puzzle's space, and what a parent cannot give."""

import pytest

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.puzzle.settings import SpaceSettings
from fretsaw.puzzle.space import default_alternatives, layer_alternatives


def uniform(**fields) -> ModelConfig:
    defaults = {"vocab_size": 64, "hidden_size": 64, "num_attention_heads": 8, "head_dim": 8}
    return ModelConfig.uniform(**(defaults | {"num_hidden_layers": 2} | fields))


def test_alternatives_of_an_8b_are_the_papers():
    config = uniform(num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336)
    attention, ffn = default_alternatives(config)
    assert attention == ("gqa8", "gqa4", "gqa2", "gqa1", "attn_linear", "attn_none")
    # 87 % is 12472.3 = 48.7 * 256, so 49 * 256; 10 % is 1433.6, so 6 * 256
    widths = (14336, 12544, 10752, 8960, 7168, 3584, 2816, 1536)
    assert ffn == (*(f"ffn{width}" for width in widths), "ffn_linear", "ffn_none")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [(9, 9, [9, 3, 1]), (12, 6, [6, 3, 2, 1]), (8, 1, [1]), (10, 5, [5, 1])],
)
def test_kv_heads_at_every_divisor(heads, kv_heads, expected):
    config = uniform(num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=384)
    space = SpaceSettings(ffn_percents=(75, 50, 25, 10), linear=False)
    attention, ffn = default_alternatives(config, space)
    assert attention == (*(f"gqa{n}" for n in expected), "attn_none")
    assert ffn == ("ffn384", "ffn288", "ffn192", "ffn96", "ffn32", "ffn_none")


def test_named_kv_heads_must_divide():
    (block,) = uniform(num_key_value_heads=8, intermediate_size=64, num_hidden_layers=1).blocks
    space = SpaceSettings(kv_heads=(2, 8), ffn_percents=(50,), linear=False, none=False)
    assert layer_alternatives(block, space) == (("gqa8", "gqa2"), ("ffn64", "ffn32"))
    with pytest.raises(ValueError, match="3 does not divide the parent's 8"):
        layer_alternatives(block, SpaceSettings(kv_heads=(3,)))
    with pytest.raises(ValueError, match="ffn_percents"):
        SpaceSettings(ffn_percents=(100,))


def test_absent_and_linear_subblocks_offer_only_less():
    block = BlockConfig.from_names("attn_none", "ffn_linear")
    assert layer_alternatives(block, SpaceSettings()) == (
        ("attn_none",),
        ("ffn_linear", "ffn_none"),
    )


def test_tiny_widths_are_not_repeated():
    _, ffn = default_alternatives(uniform(num_key_value_heads=1, intermediate_size=16))
    assert ffn == ("ffn16", "ffn8", "ffn_linear", "ffn_none")


def test_unequal_layers_need_named_alternatives():
    config = uniform(num_key_value_heads=4, intermediate_size=384)
    blocks = (config.blocks[0], BlockConfig.from_names("attn_none", "ffn384"))
    unequal = ModelConfig(
        vocab_size=64, hidden_size=64, num_attention_heads=8, head_dim=8, blocks=blocks
    )
    with pytest.raises(ValueError, match="layers differ"):
        default_alternatives(unequal)
