"""All sizes in one set of matrices: each is its physical slice, gradients reach what is shared."""

from pathlib import Path

import pytest
import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import BlockConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.puzzle.bld.layer_files import (
    LayerWeights,
    layer_file,
    read_trained,
    write_trained,
)
from fretsaw.puzzle.bld.nested import Nested, Pairs, slices
from fretsaw.puzzle.library.slices import alternative, build_block, pool_heads

ATTENTIONS, FFNS = ("gqa2", "gqa1", "attn_linear"), ("ffn48", "ffn16", "ffn_linear")


@pytest.fixture
def parent(tiny: Path) -> Decoder:
    return checkpoint.load(tiny / "parent").requires_grad_(False)


def built(parent: Decoder) -> tuple[Block, dict[str, Block]]:
    """Return layer 1 and its alternatives as they are built from it."""
    block = parent.model.layers[1]
    assert isinstance(block, Block)
    names = {a: (a, "ffn64") for a in ATTENTIONS} | {f: ("gqa4", f) for f in FFNS}
    return block, {
        name: build_block(block, parent.config, BlockConfig.from_names(*pair), 1)
        for name, pair in names.items()
    }


def test_every_nested_size_is_its_physical_slice(parent: Decoder) -> None:
    block, blocks = built(parent)
    nested = Nested(block, blocks)
    with torch.no_grad():  # away from the parent, as after training
        for parameter in nested.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x, context = torch.randn(2, 7, 32), parent.context(1, 7)
    normed = block.input_layernorm(x)
    added = nested.attention(normed, context, ATTENTIONS) | nested.ffn(normed, FFNS)
    for name, physical in blocks.items():
        for parameter, tensor in nested.tensors(name).items():
            assert physical.get_parameter(parameter).shape == tensor.shape
            physical.get_parameter(parameter).copy_(tensor.detach())
        if name in ATTENTIONS:
            expected = physical.self_attn(normed, context)
        else:
            expected = physical.mlp(normed)
        torch.testing.assert_close(added[name], expected, rtol=0, atol=1e-6)


def test_the_gradient_of_a_pooled_head_reaches_each_of_its_parents() -> None:
    # Two heads of one dimension pooled to one: w = (w0 + w1) / 2, so dL/dw0 = dL/dw1 = dL/dw / 2.
    shared = {n: torch.randn(2, 3, requires_grad=True) for n in ("q_proj", "k_proj", "v_proj")}
    pooled = slices(shared, "gqa1", 2)["self_attn.k_proj.weight"]
    wanted = torch.randn(1, 3)
    (pooled * wanted).sum().backward()
    gradient = shared["k_proj"].grad
    assert gradient is not None
    torch.testing.assert_close(gradient, wanted.expand(2, 3) / 2)
    assert shared["v_proj"].grad is None


@pytest.mark.parametrize("name", ["gqa2", "ffn16"])
def test_the_gradient_of_shared_matrices_is_that_of_differences(parent: Decoder, name: str) -> None:
    parent = parent.double()
    block, blocks = built(parent)
    nested = Nested(block, blocks)
    x, context = torch.randn(1, 5, 32).double(), parent.context(1, 5)
    matrix = nested.shared["k_proj" if name == "gqa2" else "up_proj"]

    def loss() -> torch.Tensor:
        return nested.losses(block, x, context, [name], through_ffn=True)[name]

    loss().backward()
    assert matrix.grad is not None
    direction = torch.randn_like(matrix)
    expected = (matrix.grad * direction).sum().item()
    step = 1e-5
    with torch.no_grad():
        matrix += step * direction
        above = loss().item()
        matrix -= 2 * step * direction
        below = loss().item()
    assert (above - below) / (2 * step) == pytest.approx(expected, rel=1e-4)
    if name == "ffn16":
        assert matrix.grad[16:].abs().max() == 0  # channels it does not have


def test_losses_are_those_of_the_built_blocks(parent: Decoder) -> None:
    block, blocks = built(parent)
    x, context = torch.randn(2, 6, 32), parent.context(1, 6)
    wanted = block(x, context)
    apart = {n: (b(x, context) - wanted).square().sum() for n, b in blocks.items()}
    losses = Nested(block, blocks).losses(block, x, context, list(blocks), through_ffn=True)
    pairs = Pairs(blocks).losses(block, x, context, list(blocks), through_ffn=True)
    for name, missed in apart.items():
        torch.testing.assert_close(losses[name], missed / wanted.square().sum())
        torch.testing.assert_close(pairs[name], missed / wanted.square().sum())
    after = block.attend(x, context)
    halfway = Nested(block, blocks).losses(block, x, context, ["gqa1"], through_ffn=False)
    missed = (blocks["gqa1"].attend(x, context) - after).square().sum()
    torch.testing.assert_close(halfway["gqa1"], missed / after.square().sum())


def test_what_is_written_is_what_is_read(parent: Decoder, tmp_path: Path) -> None:
    block, blocks = built(parent)
    nested = Nested(block, blocks)
    with torch.no_grad():
        for parameter in nested.parameters():
            parameter += torch.randn_like(parameter)
    own = {
        name: {p: t.detach() for p, t in nested.tensors(name).items() if t is nested.own[name]}
        for name in blocks
    }
    shared = {n: p.detach() for n, p in nested.shared.items()}
    weights = LayerWeights(own, shared, ["gqa2", "gqa1", "ffn16"], 4)
    write_trained(layer_file(tmp_path, 1), weights, torch.float32)
    found = read_trained(tmp_path, 1)
    assert set(found) == set(blocks)
    for name in blocks:
        tensors = nested.tensors(name) if name != "ffn48" else own[name]  # 48 kept its slices
        assert set(found[name]) == set(tensors)
        assert all(torch.equal(found[name][p], t) for p, t in tensors.items())
    assert torch.equal(
        found["gqa1"]["self_attn.v_proj.weight"], pool_heads(nested.shared["v_proj"], 4, 1)
    )

    wanted = BlockConfig.from_names("gqa2", "ffn16")
    both = alternative(block, parent.config, wanted, 1, found)
    assert torch.equal(
        both.mlp.get_parameter("down_proj.weight"), own["ffn16"]["mlp.down_proj.weight"]
    )
    pair = {"gqa2+ffn16": {"self_attn.o_proj.weight": torch.ones(32, 32)}}
    coupled = alternative(block, parent.config, wanted, 1, {**found, **pair})
    assert coupled.self_attn.get_parameter("o_proj.weight").min() == 1
    assert torch.equal(  # the pair's alone: its FFN is the parent's slice
        coupled.mlp.get_parameter("down_proj.weight"),
        blocks["ffn16"].mlp.get_parameter("down_proj.weight"),
    )
    with pytest.raises(ValueError, match="finished `fretsaw bld`"):
        read_trained(tmp_path, 2)
