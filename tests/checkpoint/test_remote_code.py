"""Stock transformers opens a written DeciLM folder and computes what our decoder computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from patterns import MIX, PATTERNS, ids_of, make
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from fretsaw.checkpoint import folder
from fretsaw.model.config import RopeScaling
from fretsaw.model.decoder import Decoder

TOLERANCE = 1e-4


def reopen(decoder: Decoder, out: Path):
    """Save, then open with stock transformers; nothing may be missing, extra or left over."""
    folder.save(decoder, out)
    opened: Any = AutoModelForCausalLM.from_pretrained(
        out, trust_remote_code=True, output_loading_info=True
    )
    model, info = opened
    assert not any(info.values()), info
    return model.eval()


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def greedy(decoder: Decoder, ids: torch.Tensor, num_new: int) -> torch.Tensor:
    for _ in range(num_new):
        ids = torch.cat((ids, decoder(ids)[:, -1:].argmax(-1)), dim=1)
    return ids


@pytest.mark.parametrize("name", PATTERNS)
@torch.no_grad()
def test_logits_and_greedy_text_are_ours(name: str, tmp_path: Path) -> None:
    decoder = make(PATTERNS[name])
    model = reopen(decoder, tmp_path / name)
    ids = ids_of(2, 12)
    assert_close(model(ids).logits, decoder(ids))
    options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    for cache in ("dynamic", "static"):
        theirs = model.generate(ids, **options, cache_implementation=cache)
        torch.testing.assert_close(theirs, greedy(decoder, ids, 8))


@pytest.mark.parametrize("name", ["attn_none_first", "mix"])
@torch.no_grad()
def test_steps_with_a_cache_are_the_whole(name: str, tmp_path: Path) -> None:
    decoder = make(PATTERNS[name])
    model = reopen(decoder, tmp_path / "m")
    ids = ids_of(2, 10)
    whole = decoder(ids)
    caches = [
        DynamicCache(config=model.config),
        StaticCache(config=model.config, max_cache_len=10),
    ]
    for cache in caches:
        parts = [model(p, past_key_values=cache).logits for p in ids.split([4, 1, 3, 1, 1], 1)]
        assert_close(torch.cat(parts, 1), whole)


@torch.no_grad()
def test_left_padding_changes_nothing(tmp_path: Path) -> None:
    decoder = make(MIX)
    model = reopen(decoder, tmp_path / "m")
    ids = ids_of(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    assert_close(logits[0, 4:], decoder(ids[:1, 4:])[0])
    assert_close(logits[1], decoder(ids[1:])[0])
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    for cache in ("dynamic", "static"):
        text = model.generate(ids, attention_mask=mask, **options, cache_implementation=cache)
        torch.testing.assert_close(text[:1, 4:], greedy(decoder, ids[:1, 4:], 6))
        torch.testing.assert_close(text[1:], greedy(decoder, ids[1:], 6))


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_rope_scaling_and_tied_embeddings(tied: bool, tmp_path: Path) -> None:
    scaling = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    )
    decoder = make(MIX, rope_scaling=scaling, rope_theta=3000.0, tie_word_embeddings=tied)
    model = reopen(decoder, tmp_path / "m")
    ids = ids_of(1, 100)
    assert_close(model(ids).logits, decoder(ids))
    model.save_pretrained(tmp_path / "again")  # transformers' own writing
    assert (tmp_path / "again" / "modeling_decilm.py").is_file()
    again = folder.load(tmp_path / "again")
    assert again.config == decoder.config
    assert torch.equal(again(ids), decoder(ids))


@torch.no_grad()
def test_head_size_of_its_own_and_eager_attention(tmp_path: Path) -> None:
    decoder = make(MIX, head_dim=32)
    model = reopen(decoder, tmp_path / "m")
    ids = ids_of(2, 8)
    expected = decoder(ids)
    assert_close(model(ids).logits, expected)
    model.set_attn_implementation("eager")
    outputs = model(ids, output_attentions=True, output_hidden_states=True)
    assert_close(outputs.logits, expected)
    assert len(outputs.hidden_states) == len(MIX) + 1
    assert [a is not None for a in outputs.attentions] == [a.startswith("gqa") for a, _ in MIX]


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    model = reopen(make(MIX), tmp_path / "m")
    model.train()
    ids = ids_of(2, 8)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=0, rtol=0)


def test_config_survives_transformers(tmp_path: Path) -> None:
    folder.save(make(MIX), tmp_path / "m")
    config = AutoConfig.from_pretrained(tmp_path / "m", trust_remote_code=True)
    assert config.layer_types == ["full_attention" if a[0] == "g" else "moe" for a, _ in MIX]
    assert config.block_configs[1].attention.n_heads_in_group == 8
    assert config.block_configs[0].ffn.ffn_mult == 6.0
    config.save_pretrained(tmp_path / "again")
    assert folder.read_config(tmp_path / "again") == folder.read_config(tmp_path / "m")
