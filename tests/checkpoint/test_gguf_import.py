"""GGUF in: what was written comes back bit for bit, what can't be read is refused by name."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import gguf as container
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from patterns import PATTERNS, ids_of, make

from fretsaw.chat.template import read_chat_templates, write_chat_templates
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint import gguf
from fretsaw.checkpoint.export_targets import EXPORT_TARGETS
from fretsaw.checkpoint.gguf_import import import_gguf
from fretsaw.checkpoint.gguf_reader import GgufFile, rope_scaling_of
from fretsaw.checkpoint.vocabulary import read_vocabulary
from fretsaw.cli import main
from fretsaw.export.portable import rewrite
from fretsaw.model.config import RopeScaling
from fretsaw.model.rope import rope_inv_freq

TEXTS = (
    "Tom has 13 apples and Lily's 4 pens; they're   glad!\n\n  Naïve — 東京 1234 ",
    "",
    " leading, trailing ",
    "<s> </s> <|im_start|>user\n",
    "x = 7-3\t\r\n\r\n½ ①②③ ٣٤٥ 12345678.90 don't WE'LL",
    "🙂🙃 e\u0301 \u200b\u00a0\ufeff",
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer.train([TEXTS[0]] * 3, 300)
    tokenizer.add_special_tokens(["<|im_start|>"])
    tokenizer.save(folder)
    write_chat_templates(folder, {"default": "{{ messages }}", "tool_use": "{{ tools }}"})
    return folder


def written(folder: Path, path: Path, pattern: str = "uniform", size: int = 301, **changes):
    """A pattern with a tokenizer as llama.cpp's file, and the decoder that it holds."""
    source = make(PATTERNS[pattern], vocab_size=size, **changes)
    decoder = rewrite(source, EXPORT_TARGETS["llama.cpp"], width_multiple=32)[0]
    gguf.write(decoder, path, vocabulary=read_vocabulary(folder, size), name="m")
    return decoder


@pytest.mark.parametrize("pattern", ["uniform", "mix", "no_ops", "variable_kv"])
def test_our_own_file_comes_back_bit_for_bit(pattern: str, trained: Path, tmp_path: Path) -> None:
    decoder = written(trained, tmp_path / "m.gguf", pattern, tie_word_embeddings=pattern == "mix")
    assert main(["import", str(tmp_path / "m.gguf"), "--out", str(tmp_path / "out")]) == 0
    again = checkpoint.load(tmp_path / "out")
    assert again.config == checkpoint.read_config(tmp_path / "out")
    assert again.config.blocks == decoder.config.blocks
    theirs = again.state_dict()
    for name, weight in decoder.state_dict().items():
        assert torch.equal(theirs[name], weight), name


def test_the_tokenizer_gives_the_same_ids(trained: Path, tmp_path: Path) -> None:
    written(trained, tmp_path / "m.gguf")
    import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    before, after = Tokenizer.from_folder(trained), Tokenizer.from_folder(tmp_path / "out")
    for text in TEXTS:
        assert after.encode(text) == before.encode(text), text
        assert after.encode_raw(text) == before.encode_raw(text), text
        assert after.decode(after.encode(text)) == before.decode(before.encode(text)), text
    assert (after.bos_token_id, after.eos_token_ids) == (before.bos_token_id, before.eos_token_ids)
    assert after.vocab_size == before.vocab_size
    assert read_chat_templates(tmp_path / "out") == {
        "default": "{{ messages }}",
        "tool_use": "{{ tools }}",
    }


def test_scores_come_back_as_merges(stories_folder: Path, tmp_path: Path) -> None:
    written(stories_folder, tmp_path / "m.gguf", size=512)
    import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    before, after = Tokenizer.from_folder(stories_folder), Tokenizer.from_folder(tmp_path / "out")
    story = "Once upon a time, there was a little girl named Lily. She loved the sunny garden. "
    for text in (*TEXTS, story * 3, "thethethe andand in the", "\t\n"):
        assert after.encode(text) == before.encode(text), text
        assert after.decode(after.encode(text)) == before.decode(before.encode(text)), text
    again = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["model"]
    first = json.loads((stories_folder / "tokenizer.json").read_text())["model"]
    assert {tuple(pair) for pair in again["merges"]} == {
        tuple(m.split(" ") if isinstance(m, str) else m) for m in first["merges"]
    }


def test_llama_3s_tokenizer_comes_back(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "tokenizers" / "llama3"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    decoder = make(PATTERNS["uniform"], vocab_size=128256)
    gguf.write(decoder, tmp_path / "m.gguf", vocabulary=read_vocabulary(folder, 128256), name="m")
    import_gguf(tmp_path / "m.gguf", tmp_path / "out", dtype="bf16")
    before, after = Tokenizer.from_folder(folder), Tokenizer.from_folder(tmp_path / "out")
    for text in (*TEXTS, "<|eot_id|><|start_header_id|>user"):
        assert after.encode(text) == before.encode(text), text
        assert after.encode_raw(text) == before.encode_raw(text), text


SCALINGS = [
    RopeScaling(
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )
    for factor, low, high, original in (
        (8.0, 1.0, 4.0, 8192),
        (32.0, 1.0, 4.0, 8192),
        (4.0, 1.0, 4.0, 32),
        (8.0, 2.0, 5.0, 1000),
        (2.5, 1.0, 1.5, 4096),
        (8.0, 1.0, 4.0, 3),
    )
]


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_rotary_scaling_is_found_again(scaling: RopeScaling, head_dim: int) -> None:
    config = replace(
        make(PATTERNS["uniform"], vocab_size=96).config, head_dim=head_dim, rope_theta=500000.0
    )
    scaled = rope_inv_freq(replace(config, rope_scaling=scaling))
    factors = rope_inv_freq(config) / scaled
    found = rope_scaling_of(config, factors)
    again = rope_inv_freq(replace(config, rope_scaling=found))
    torch.testing.assert_close(again, scaled, rtol=1e-4, atol=0)
    if scaling in SCALINGS[:2] and head_dim == 128:
        assert found == scaling


def test_factors_of_another_kind_are_refused() -> None:
    config = make(PATTERNS["uniform"], vocab_size=96).config
    factors = torch.linspace(1, 9, config.head_dim // 2) ** 2
    with pytest.raises(ValueError, match=r"rope_freqs\.weight: the factors .* not those"):
        rope_scaling_of(config, factors.flip(0))


# --- weights in few bits, and files of other programs ---------------------------------------------


def edited(
    path: Path,
    out: Path,
    *,
    drop=(),
    as_type=None,
    arch="llama",
    instead: Mapping[str, tuple] = MappingProxyType({}),
    **changes,
) -> Path:
    """Write a file anew with other keys ("arch__key", "tokenizer__key") or another precision.

    `instead` has tensors to write in place of others, packed already: (bytes, type) by name.
    """
    reader = container.GGUFReader(path)
    writer = container.GGUFWriter(out, arch)
    own = {f"llama.{k.removeprefix('arch__')}": v for k, v in changes.items() if "arch__" in k}
    own |= {k.replace("__", ".ggml."): v for k, v in changes.items() if "tokenizer__" in k}
    own |= {k.replace("__", "."): v for k, v in changes.items() if k.startswith("split__")}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in (*own, *drop):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for name, value in own.items():
        kind = {str: container.GGUFValueType.STRING, float: container.GGUFValueType.FLOAT32}
        writer.add_key_value(name, value, kind.get(type(value), container.GGUFValueType.UINT32))
    for tensor in reader.tensors:
        if tensor.name in drop:
            continue
        if tensor.name in instead:
            packed, kind = instead[tensor.name]
            writer.add_tensor(tensor.name, packed, raw_dtype=kind)
        elif as_type is None or len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        else:
            packed = quants.quantize(np.array(tensor.data, np.float32), as_type)
            writer.add_tensor(tensor.name, packed, raw_dtype=as_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_weights_in_few_bits_are_expanded(kind: str, trained: Path, tmp_path: Path) -> None:
    decoder = written(trained, tmp_path / "m.gguf")
    as_type = GGMLQuantizationType[kind]
    path = edited(tmp_path / "m.gguf", tmp_path / "q.gguf", as_type=as_type)
    imported = import_gguf(path, tmp_path / "out")
    assert imported.stored == kind
    assert imported.dtype == {"F16": "fp16", "BF16": "bf16"}.get(kind, "fp32")
    weights = checkpoint.load(tmp_path / "out").state_dict()
    down = "model.layers.1.mlp.down_proj.weight"
    packed = quants.quantize(decoder.state_dict()[down].numpy(), as_type)
    expected = torch.from_numpy(quants.dequantize(packed, as_type))
    assert torch.equal(weights[down], expected)
    error = (weights[down] - decoder.state_dict()[down]).abs().max()
    assert 0 < error < 0.1


def test_k_quants_are_expanded(trained: Path, tmp_path: Path) -> None:
    """No package writes them here, so blocks are laid out by hand: 256 values of 1/4 each."""
    written(trained, tmp_path / "m.gguf")
    block = np.zeros(210, np.uint8)  # Q6_K: 128 low nibbles, 64 high pairs, 16 scales, one half
    block[:128], block[128:192], block[192:208] = 0x11, 0xAA, 1
    block[208:] = np.frombuffer(np.float16(0.25).tobytes(), np.uint8)
    kind = GGMLQuantizationType.Q6_K
    blocks = {"blk.1.ffn_down.weight": (np.tile(block, (128, 1)), kind)}
    path = edited(tmp_path / "m.gguf", tmp_path / "q.gguf", instead=blocks)
    imported = import_gguf(path, tmp_path / "out")
    assert (imported.stored, imported.dtype) == ("F32, Q6_K", "fp32")
    weights = checkpoint.load(tmp_path / "out").state_dict()
    assert torch.equal(weights["model.layers.1.mlp.down_proj.weight"], torch.full((128, 256), 0.25))


def test_a_precision_that_is_not_known_is_refused(trained: Path, tmp_path: Path) -> None:
    written(trained, tmp_path / "m.gguf")
    kind = GGMLQuantizationType.Q8_K  # llama.cpp's own, never of a file
    size = container.GGML_QUANT_SIZES[kind][1]
    blocks = {"blk.1.ffn_down.weight": (np.zeros((128, size), np.uint8), kind)}
    path = edited(tmp_path / "m.gguf", tmp_path / "q.gguf", instead=blocks)
    with pytest.raises(ValueError, match=r"ffn_down\.weight is stored as Q8_K, which can't be"):
        import_gguf(path, tmp_path / "out")
    raw = (tmp_path / "q.gguf").read_bytes()
    name = b"blk.1.ffn_down.weight"
    at = raw.index(name) + len(name) + 4 + 2 * 8  # behind the number of sizes, and two sizes
    (tmp_path / "u.gguf").write_bytes(raw[:at] + b"\xe7\x03\0\0" + raw[at + 4 :])
    with pytest.raises(ValueError, match=r"u\.gguf: not a whole GGUF file .*999"):
        import_gguf(tmp_path / "u.gguf", tmp_path / "out")


BAD = {
    "another architecture": ({"arch": "qwen2"}, "its architecture is 'qwen2'"),
    "experts": ({"arch__expert_count": 8}, r"llama\.expert_count is 8"),
    "a part of several": ({"split__count": 3}, "one of 3 parts; join them"),
    "scaling by name": ({"arch__rope.scaling.type": "yarn"}, "'yarn', which this network does not"),
    "half of a head rotated": ({"arch__rope.dimension_count": 8}, "of which 8 are rotated"),
    "an unknown way to split": ({"tokenizer__pre": "deepseek-llm"}, "'deepseek-llm', a way of"),
    "another tokenizer": ({"tokenizer__model": "t5"}, "its tokenizer is of kind 't5'"),
    "no tokens": ({"drop": ("tokenizer.ggml.tokens",)}, "its tokenizer is not whole"),
    "no context": ({"drop": ("llama.context_length",)}, r"no llama\.context_length"),
    "no embedding": ({"drop": ("token_embd.weight",)}, r"no tensor token_embd\.weight"),
    "a norm missing": ({"drop": ("blk.1.attn_norm.weight",)}, r"no tensor blk\.1\.attn_norm"),
    "more layers than said": ({"arch__block_count": 1}, "do not call for"),
    "another width": ({"arch__feed_forward_length": 64}, "but its layers call for"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_refused_in_one_sentence(
    case: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changes, told = BAD[case]
    written(trained, tmp_path / "m.gguf")
    path = edited(tmp_path / "m.gguf", tmp_path / "bad.gguf", **changes)
    with pytest.raises(ValueError, match=told):
        import_gguf(path, tmp_path / "out")
    assert main(["import", str(path), "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_cut_anywhere_is_refused(trained: Path, tmp_path: Path) -> None:
    written(trained, tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    for share in (0.0, 0.001, 0.01, 0.05, 0.1, 0.3, 0.6, 0.9, 0.999):
        (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"cut\.gguf: not a whole GGUF file"):
            GgufFile(tmp_path / "cut.gguf")


def test_no_file_and_no_gguf(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        import_gguf(tmp_path / "absent.gguf", tmp_path / "out")
    (tmp_path / "text.gguf").write_text("not at all")
    with pytest.raises(ValueError, match="not a whole GGUF file"):
        import_gguf(tmp_path / "text.gguf", tmp_path / "out")


def test_a_file_in_place_of_a_checkpoint_says_what_to_do(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    written(trained, tmp_path / "m.gguf")
    assert main(["inspect", str(tmp_path / "m.gguf")]) == 2
    assert f"`fretsaw import {tmp_path / 'm.gguf'} --out m`" in capsys.readouterr().err


@torch.no_grad()
def test_logits_are_those_of_the_source(trained: Path, tmp_path: Path) -> None:
    scaling = SCALINGS[2]
    decoder = written(trained, tmp_path / "m.gguf", rope_scaling=scaling, rope_theta=3000.0)
    import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    again = checkpoint.load(tmp_path / "out")
    ids = ids_of(2, 100)
    torch.testing.assert_close(again(ids), decoder(ids), atol=1e-4, rtol=0)
