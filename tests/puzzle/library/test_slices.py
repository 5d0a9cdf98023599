"""Alternatives are slices: sorting changes nothing, a slice is the physical slice."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import BlockConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.ffn import SwiGLU
from fretsaw.puzzle.library.ranking import read_orders
from fretsaw.puzzle.library.slices import build_block, pool_heads, sort_parent


@pytest.fixture
def sorted_parent(tiny: Path) -> Decoder:
    parent = checkpoint.load(tiny / "parent")
    sort_parent(parent, read_orders(tiny / "ranking", 4))
    return parent


def block_of(decoder: Decoder, layer: int) -> Block:
    block = decoder.model.layers[layer]
    assert isinstance(block, Block)
    return block


def test_the_sorted_parent_is_the_parent(tiny: Path, sorted_parent: Decoder) -> None:
    ids = torch.randint(300, (3, 40))
    parent = checkpoint.load(tiny / "parent")
    torch.testing.assert_close(sorted_parent(ids), parent(ids), rtol=0, atol=1e-5)
    orders = read_orders(tiny / "ranking", 4)
    for order in orders:
        assert order.channels is not None
        assert order.heads is not None
        assert not torch.equal(order.channels, torch.arange(64))
        assert (order.heads.turn_keys - torch.eye(8).double()).abs().max() > 0.1


def test_a_narrow_ffn_is_the_important_channels_of_the_parent(
    tiny: Path, sorted_parent: Decoder
) -> None:
    parent = block_of(checkpoint.load(tiny / "parent"), 1)
    channels = read_orders(tiny / "ranking", 4)[1].channels
    assert channels is not None
    wanted = BlockConfig.from_names("gqa4", "ffn24")
    narrow = build_block(block_of(sorted_parent, 1), sorted_parent.config, wanted, 1)
    x = torch.randn(2, 5, 32)
    assert isinstance(parent.mlp, SwiGLU)
    kept = torch.zeros(64).index_fill(0, channels[:24], 1.0)  # zero the other channels instead
    normed = parent.post_attention_layernorm(x)
    expected = x + parent.mlp.down_proj(parent.mlp.entering(normed) * kept)
    torch.testing.assert_close(narrow.feed(x), expected, rtol=0, atol=1e-6)


def test_the_full_size_block_is_the_parents(sorted_parent: Decoder) -> None:
    wanted = sorted_parent.config.blocks[0]
    block = block_of(sorted_parent, 0)
    built = build_block(block, sorted_parent.config, wanted, 0)
    x = torch.randn(2, 5, 32)
    context = sorted_parent.context(2, 5)
    assert torch.equal(built(x, context), block(x, context))


def test_pooled_heads_are_means_of_neighbours() -> None:
    weight = torch.arange(8.0)[:, None].expand(8, 3)  # 4 heads of 2 dimensions
    pooled = pool_heads(weight, 4, 2)
    # heads (0,1), (2,3), (4,5), (6,7): means of the first two and of the last two
    assert pooled[:, 0].tolist() == [1.0, 2.0, 5.0, 6.0]


def test_what_the_parent_cannot_give_is_refused(sorted_parent: Decoder) -> None:
    block, config = block_of(sorted_parent, 0), sorted_parent.config
    with pytest.raises(ValueError, match="wider than the parent"):
        build_block(block, config, BlockConfig.from_names("gqa4", "ffn128"), 0)
    with pytest.raises(ValueError, match="does not divide"):
        build_block(block, config, BlockConfig.from_names("gqa3", "ffn64"), 0)
    absent = BlockConfig.from_names("attn_none", "ffn_none")
    bare = replace(config, blocks=(absent,) * 4)
    for names, complaint in (
        (("gqa1", "ffn_none"), "does not divide the parent's attn_none"),
        (("attn_none", "ffn_linear"), "nothing there"),
    ):
        with pytest.raises(ValueError, match=complaint):
            build_block(Block(bare, absent), bare, BlockConfig.from_names(*names), 0)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_matrix_is_attention_to_oneself(sorted_parent: Decoder, kv_heads: int) -> None:
    shape = BlockConfig.from_names(f"gqa{kv_heads}", "ffn64")
    config = replace(sorted_parent.config, blocks=(shape,))
    block = Block(config, shape)
    wanted = BlockConfig.from_names("attn_linear", "ffn64")
    linear = build_block(block, config, wanted, 0)
    x = torch.randn(5, 1, 32)  # rows of one token can attend to nothing else
    context = sorted_parent.context(5, 1)
    torch.testing.assert_close(linear.attend(x, context), block.attend(x, context))


def test_a_matrix_is_the_ffn_without_its_gate(sorted_parent: Decoder) -> None:
    block = block_of(sorted_parent, 2)
    wanted = BlockConfig.from_names("gqa4", "ffn_linear")
    linear = build_block(block, sorted_parent.config, wanted, 2)
    x = torch.randn(2, 5, 32)
    assert isinstance(block.mlp, SwiGLU)
    ungated = block.mlp.down_proj(block.mlp.up_proj(block.post_attention_layernorm(x)))
    torch.testing.assert_close(linear.feed(x), x + ungated)
