"""Fused = parallel sum, and the shapes of groups."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from patterns import BASE
from transformers import AutoModelForCausalLM

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import BlockConfig, ModelConfig, blocks_from_names
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.place import Place
from fretsaw.model.size import num_params
from fretsaw.puzzle.library.fusion import Norm, feed_in_parallel, fuse_blocks, with_fused
from fretsaw.puzzle.library.runs import (
    Group,
    check_groups,
    find_runs,
    fused_config,
    fused_shape,
    layers_of,
)

FULL = ("gqa4", "ffn256")
# 0 | 1: attention and FFN, then 2, an empty 3, 4, 5 | 6: attention alone, then 7, 8 | linear 9, 10
NAMES = [
    FULL,
    ("gqa2", "ffn128"),
    ("attn_none", "ffn256"),
    ("attn_none", "ffn_none"),
    ("attn_none", "ffn64"),
    ("attn_none", "ffn100"),
    ("gqa4", "ffn_none"),
    ("attn_none", "ffn256"),
    ("attn_none", "ffn256"),
    ("attn_none", "ffn_linear"),
    ("attn_none", "ffn_linear"),
    FULL,
]
GROUPS = [Group(1, 4), Group(7, 8), Group(9, 10)]


def model(names: list[tuple[str, str]], seed: int = 0) -> Decoder:
    """Return a decoder with lively norms, in float64."""
    torch.manual_seed(seed)
    decoder = Decoder(replace(BASE, blocks=blocks_from_names(names))).double()
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if "norm" in name else 0.08))
            weight.add_(1.0 if "norm" in name else 0.0)
    return decoder.requires_grad_(False)


def fused_of(decoder: Decoder, groups: list[Group], norm: Norm = "folded") -> list[Block]:
    """Return the fused block of every group."""
    blocks = decoder.config.blocks
    return [
        fuse_blocks(
            [decoder.model.layers[i] for i in group.layers if blocks[i].ffn != "none"],  # type: ignore[misc]
            decoder.config,
            fused_shape(blocks, group),
            norm,
        )
        for group in groups
    ]


def parts(decoder: Decoder, group: Group) -> list[Block]:
    layers = [decoder.model.layers[i] for i in group.layers]
    return [block for block in layers if isinstance(block, Block) and block.has_ffn]


# --- the algebra ----------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_fused_is_the_parallel_sum(group: Group, dtype: torch.dtype, bound: float) -> None:
    decoder = model(NAMES).to(dtype)
    x = torch.randn(3, 5, BASE.hidden_size, dtype=dtype)
    (fused,) = fused_of(decoder, [group])
    wanted = feed_in_parallel(parts(decoder, group), x)
    assert (fused.feed(x) - wanted).norm() / wanted.norm() < bound
    assert (fused.feed(x) - wanted).abs().max() / wanted.abs().max() < bound
    assert fused.feed(x).dtype == dtype


def test_the_papers_variant_has_the_last_norm_for_all() -> None:
    decoder = model(NAMES)
    x = torch.randn(3, 5, BASE.hidden_size, dtype=torch.float64)
    (fused,) = fused_of(decoder, [Group(1, 4)], "last")
    blocks = parts(decoder, Group(1, 4))
    shared = blocks[-1].post_attention_layernorm(x)
    torch.testing.assert_close(fused.feed(x), x + sum(block.mlp(shared) for block in blocks))
    (folded,) = fused_of(decoder, [Group(1, 4)])
    assert (folded.feed(x) - fused.feed(x)).norm() > 1e-3  # the norms differ


def test_of_the_second_ffn_alone_nothing_is_lost_where_the_first_writes_nothing() -> None:
    decoder = model([FULL, ("attn_none", "ffn256"), FULL])
    decoder.model.layers[0].mlp.down_proj.weight.zero_()  # type: ignore[union-attr]
    token_ids = torch.randint(BASE.vocab_size, (2, 9))
    fused = with_fused(decoder, [Group(0, 1)], fused_of(decoder, [Group(0, 1)]))
    torch.testing.assert_close(fused(token_ids), decoder(token_ids))


def test_bf16_is_rounded_once() -> None:
    decoder = model(NAMES).bfloat16()
    block = fused_of(decoder, [Group(1, 2)])[0]
    own = parts(decoder, Group(1, 2))[0]
    weights, fused = own.state_dict(), block.state_dict()["mlp.gate_proj.weight"]
    gate, norm = weights["mlp.gate_proj.weight"], weights["post_attention_layernorm.weight"]
    assert torch.equal(fused[:128], (gate.float() * norm.float()).bfloat16())


# --- whole models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps_layers", [False, True])
def test_a_fused_model_has_the_parts_parameters_less_the_norms(keeps_layers: bool) -> None:
    decoder = model(NAMES)
    fused = with_fused(decoder, GROUPS, fused_of(decoder, GROUPS), keeps_layers=keeps_layers)
    num_norms = (3 - 1) + (2 - 1) + (2 - 1)
    linear_saved = BASE.hidden_size**2  # two matrices became one
    wanted = num_params(decoder.config) - num_norms * BASE.hidden_size - linear_saved
    assert num_params(fused.config) == sum(w.numel() for w in fused.parameters()) == wanted
    assert fused.config.num_hidden_layers == (12 if keeps_layers else 12 - 5)
    assert fused.config.blocks[1] == decoder.config.blocks[1].__class__("gqa", 2, "swiglu", 448)
    assert num_params(decoder.config) == sum(w.numel() for w in decoder.parameters())


@pytest.mark.parametrize("keeps_layers", [False, True])
def test_where_layers_stood(keeps_layers: bool) -> None:
    decoder = model(NAMES)
    stood = layers_of(12, GROUPS, keeps_layers=keeps_layers)
    dropped = [0, 4, 5, 6, 8, 10, 11]
    assert stood == ([0, 4, 4, 4, 4, 5, 6, 8, 8, 10, 10, 11] if keeps_layers else dropped)
    fused = with_fused(decoder, GROUPS, fused_of(decoder, GROUPS), keeps_layers=keeps_layers)
    assert len(stood) == fused.config.num_hidden_layers


def test_runs() -> None:
    blocks = blocks_from_names(NAMES)
    assert find_runs(blocks) == [[1, 2, 4, 5], [7, 8], [9, 10]]
    assert find_runs(blocks_from_names([FULL] * 3)) == []
    alone = [("attn_none", "ffn64"), ("attn_none", "ffn64"), FULL]
    assert find_runs(blocks_from_names(alone)) == [[0, 1]]


def test_a_group_stands_for_what_is_between_its_ffns_too() -> None:
    assert Group(1, 3).start == Place(1, "ffn")
    assert Group(1, 3).num_subblocks == 5  # FFN 1, attention 2, FFN 2, attention 3, FFN 3
    assert Group(1, 3).start + 5 == Place(4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([Group(0, 1)], "layer 1 has an attention between"),
        ([Group(4, 7)], "layer 6 has an attention between"),
        ([Group(2, 3)], "1 FFN, and fusing takes two"),
        ([Group(5, 5)], "1 FFN"),
        ([Group(8, 9)], "do not fuse"),
        ([Group(10, 12)], "layers 0 to 11"),
        ([Group(1, 2), Group(2, 4)], "both have layer 2"),
        ([Group(3, 5)], "name 4-5"),
    ],
)
def test_what_cannot_be_fused(groups: list[Group], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_groups(blocks_from_names(NAMES), groups)


def test_a_group_is_read() -> None:
    assert Group.parse(" 42-50") == Group(42, 50)
    assert str(Group(42, 50)) == "42-50"
    with pytest.raises(ValueError, match="as in 42-50"):
        Group.parse("42:50")


def test_a_fused_checkpoint_is_a_plain_folder(tiny: Path, tmp_path: Path) -> None:
    parent = checkpoint.load(tiny / "parent")
    bare = list(parent.config.blocks)
    bare[1] = BlockConfig(attention="none", ffn="swiglu", intermediate_size=64)
    bare[2] = bare[1]
    config: ModelConfig = replace(parent.config, blocks=tuple(bare))
    decoder = Decoder(config).eval()
    with torch.inference_mode():
        fused = with_fused(decoder, [Group(0, 2)], fused_of(decoder, [Group(0, 2)]))
        (tmp_path / "fused").mkdir()
        checkpoint.write(fused, tmp_path / "fused", like=tiny / "parent")
        token_ids = torch.randint(config.vocab_size, (2, 16))
        again = checkpoint.load(tmp_path / "fused")
        assert again.config.blocks == fused_config(config, [Group(0, 2)]).blocks
        assert torch.equal(again(token_ids), fused(token_ids))
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", trust_remote_code=True)
        logits = theirs.eval()(token_ids).logits
        torch.testing.assert_close(logits, fused(token_ids), rtol=1e-4, atol=1e-4)
