"""Rewritten networks compute the same and keep their target's rules, or are refused by layer."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from patterns import FULL, LINEAR, PATTERNS, ids_of, make

from fretsaw.checkpoint.export_targets import EXPORT_TARGETS
from fretsaw.export.portable import rewrite
from fretsaw.model.decoder import Decoder

IDS = ids_of(2, 24)
ROUNDING = 3e-6  # logits are of size 1; a sum with zeros appended may be taken in another order


def rewritten(pattern: str, target: str) -> tuple[Decoder, Decoder, list[str]]:
    source = make(PATTERNS[pattern])
    return source, *rewrite(source, EXPORT_TARGETS[target])


@torch.no_grad()
def difference(a: Decoder, b: Decoder) -> float:
    return float((a(IDS) - b(IDS)).abs().max())


def takes(target: str, pattern: str) -> bool:
    is_linear = pattern in LINEAR and EXPORT_TARGETS[target].linear == "refused"
    is_unspelled = target == "nvidia" and pattern in ("any_widths", "no_ops")  # 100, 44, 300 wide
    return not (is_linear or is_unspelled)


@pytest.mark.parametrize("target", EXPORT_TARGETS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_taken_is_the_same_function_and_the_rest_refused(pattern: str, target: str) -> None:
    if not takes(target, pattern):
        with pytest.raises(ValueError, match=r"layer \d: .*--target \w"):
            rewritten(pattern, target)
        return
    source, result, notes = rewritten(pattern, target)
    is_padded = any("widened" in note for note in notes)
    assert difference(source, result) <= (ROUNDING if is_padded else 0.0)
    assert (result.config.blocks == source.config.blocks) == (notes == [])

    rules, blocks = EXPORT_TARGETS[target], result.config.blocks
    if rules.keeps_layout:
        assert result is source
        return
    assert not any((b.attention, b.ffn) == ("none", "none") for b in blocks)
    assert not any(b.ffn == "linear" for b in blocks)
    assert all(b.attention != "linear" for b in blocks) or target == "llama.cpp"
    if rules.needs_first_attention:
        assert blocks[0].attention != "none"
    if rules.needs_ffns:
        assert all(b.ffn == "swiglu" for b in blocks)
    if not result.config.is_homogeneous:
        assert all(b.intermediate_size % rules.width_multiple == 0 for b in blocks)


def test_portable_is_no_longer_than_what_it_holds() -> None:
    _, result, notes = rewritten("no_ops", "portable")
    names = [(b.attention_name, b.ffn_name) for b in result.config.blocks]
    assert names == [
        ("gqa1", "ffn512"),  # zeros, and the first FFN
        ("gqa1", "ffn256"),  # zeros after it
        ("gqa2", "ffn256"),  # with the FFN of the layer after it, widened from 100
        ("attn_none", "ffn256"),
        ("gqa8", "ffn256"),  # zeros after it
    ]
    assert notes == [
        "7 layers, 1 of which did nothing, laid out as 5",
        "layer 0 given an attention of zeros, with 1 key-value head",
        "layers 1, 4 given an FFN of zeros, 256 wide",
        "layer 2 widened with zeros, FFNs to multiples of 256",
    ]


def test_a_linear_ffn_becomes_a_layer_of_its_own_for_llama_cpp() -> None:
    source, result, notes = rewritten("ffn_linear_middle", "llama.cpp")
    names = [(b.attention_name, b.ffn_name) for b in result.config.blocks]
    zeros = "ffn32"
    assert names == [FULL, ("gqa4", zeros), ("attn_linear", zeros), FULL]
    before, after = source.state_dict(), result.state_dict()
    moved = {
        "self_attn.linear_attn": "mlp.linear_mlp",
        "input_layernorm": "post_attention_layernorm",
    }
    for new, old in moved.items():
        theirs = after[f"model.layers.2.{new}.weight"]
        assert torch.equal(theirs, before[f"model.layers.1.{old}.weight"])
    assert notes[0] == "1 linear FFNs put in an attention's place, a layer further on"


def test_layers_that_become_alike_make_a_plain_llama() -> None:
    _, result, _ = rewritten("any_widths", "llama.cpp")
    assert not result.config.is_homogeneous
    source = make([("gqa4", "ffn100"), ("gqa4", "ffn256"), ("attn_none", "ffn_none")])
    result, _ = rewrite(source, EXPORT_TARGETS["portable"])
    assert result.config.is_homogeneous


def test_a_plain_llama_keeps_its_widths_unless_a_precision_needs_others() -> None:
    source = make([("gqa4", "ffn172")] * 2)
    assert rewrite(source, EXPORT_TARGETS["portable"])[1] == []
    result, notes = rewrite(source, EXPORT_TARGETS["portable"], width_multiple=32)
    assert [b.intermediate_size for b in result.config.blocks] == [192, 192]
    assert notes == ["layers 0, 1 widened with zeros, FFNs to multiples of 32"]
    assert difference(source, result) <= ROUNDING


def test_a_network_that_does_nothing_is_still_a_network() -> None:
    source = make([("attn_none", "ffn_none")] * 2)
    for target in ("portable", "vllm", "mlx", "llama.cpp"):
        result, _ = rewrite(source, EXPORT_TARGETS[target])
        assert result.config.num_hidden_layers == 1
        assert difference(source, result) == 0.0


def test_weights_are_shared_and_the_source_is_left_as_it_is() -> None:
    source = make(PATTERNS["no_ops"])
    before = {name: weight.clone() for name, weight in source.state_dict().items()}
    result, _ = rewrite(source, EXPORT_TARGETS["portable"])
    assert (
        result.model.embed_tokens.weight.data_ptr() == source.model.embed_tokens.weight.data_ptr()
    )
    assert all(torch.equal(weight, before[name]) for name, weight in source.state_dict().items())
    assert source.config.blocks == make(PATTERNS["no_ops"]).config.blocks


def test_what_is_added_has_the_precision_of_the_rest() -> None:
    source = make(PATTERNS["no_ops"]).to(torch.bfloat16)
    result, _ = rewrite(source, EXPORT_TARGETS["portable"])
    assert {weight.dtype for weight in result.state_dict().values()} == {torch.bfloat16}


def test_a_head_size_of_its_own() -> None:
    source = make(PATTERNS["variable_kv"], head_dim=32)
    for target in ("portable", "mlx", "nvidia"):
        with pytest.raises(ValueError, match=r"head_dim 32: .*--target vllm"):
            rewrite(source, EXPORT_TARGETS[target])
    for target in ("vllm", "llama.cpp", "transformers"):
        assert difference(source, rewrite(source, EXPORT_TARGETS[target])[0]) == 0.0
    uniform = make(PATTERNS["uniform"], head_dim=32)  # a plain Llama says its head_dim
    assert rewrite(uniform, EXPORT_TARGETS["portable"])[1] == []
    with pytest.raises(ValueError, match="head_dim 32"):
        rewrite(uniform, EXPORT_TARGETS["nvidia"])


def test_nvidias_dialect_spells_multiples_of_256() -> None:
    with pytest.raises(ValueError, match=r"layer 0: an FFN 100 wide.*--target portable"):
        rewritten("any_widths", "nvidia")


ATTENTIONS = st.sampled_from(["gqa1", "gqa2", "gqa8", "attn_none", "attn_none"])
FFNS = st.sampled_from(["ffn256", "ffn512", "ffn40", "ffn_none", "ffn_none"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ATTENTIONS, FFNS), min_size=1, max_size=6))
def test_any_sequence_of_layers_is_portable(choices: list[tuple[str, str]]) -> None:
    source = make(choices)
    result, notes = rewrite(source, EXPORT_TARGETS["portable"])
    is_padded = any("widened" in note for note in notes)
    assert difference(source, result) <= (ROUNDING if is_padded else 0.0)
    again, none = rewrite(result, EXPORT_TARGETS["portable"])
    assert (again.config, none) == (result.config, [])  # portable is a normal form
