"""GGUF files: read back equal, with the keys llama.cpp needs, rotated and quantised as it does."""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import gguf as container
import pytest
import torch
from patterns import PATTERNS, ids_of, make

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import gguf, gguf_reader
from fretsaw.checkpoint.export_targets import EXPORT_TARGETS
from fretsaw.checkpoint.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    read_vocabulary,
)
from fretsaw.export.portable import rewrite
from fretsaw.model.config import RopeScaling
from fretsaw.model.decoder import Decoder

TEXT = "Tom has 13 apples and Lily's 4 pens; they're   glad!\n\n  Naïve — 東京 1234 "
SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
IDS = ids_of(2, 24)
DIGITS = {"type": "Digits", "individual_digits": True}
GPT_2_WORDS = {
    **{"type": "ByteLevel", "add_prefix_space": False},
    **{"trim_offsets": True, "use_regex": True},
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer as `fretsaw corpus` trains it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train([TEXT] * 3, 300).save(folder)
    return folder


@pytest.fixture(scope="session")
def vocabulary(trained: Path) -> Vocabulary:
    return read_vocabulary(trained, 300)


def prepared(pattern: str, target: str = "llama.cpp", **changes) -> Decoder:
    """A pattern as it is written for llama.cpp."""
    source = make(PATTERNS[pattern], vocab_size=300, **changes)
    return rewrite(source, EXPORT_TARGETS[target], width_multiple=32)[0]


def fields(path: Path) -> dict:
    reader = container.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def tensors(path: Path) -> dict[str, container.ReaderTensor]:
    return {tensor.name: tensor for tensor in container.GGUFReader(path).tensors}


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_every_pattern_is_read_back_equal(
    pattern: str, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    decoder = prepared(pattern)
    path = tmp_path / "m.gguf"
    gguf.write(decoder, path, vocabulary=vocabulary, name="m")
    again = gguf_reader.read(path)
    assert again.config.blocks == decoder.config.blocks
    assert again.state_dict().keys() == decoder.state_dict().keys()
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in decoder.state_dict().items())
    assert torch.equal(again(IDS), decoder(IDS))


@pytest.mark.parametrize("dtype", gguf.TYPES)
@torch.no_grad()
def test_every_precision_is_read_back_as_rounded(
    dtype: str, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    decoder = prepared("mix")
    path = tmp_path / "m.gguf"
    gguf.write(decoder, path, vocabulary=vocabulary, name="m", dtype=dtype)
    again = gguf_reader.read(path).state_dict()
    for name, weight in decoder.state_dict().items():
        assert torch.equal(again[name], gguf.rounded(weight, dtype)), name
    stored = {tensor.tensor_type.name for tensor in tensors(path).values() if tensor.shape.size > 1}
    assert stored == {gguf.TYPES[dtype][0].name}
    vectors = {t.tensor_type.name for t in tensors(path).values() if t.shape.size == 1}
    assert vectors == {"F32"}  # norms


def test_q8_0_is_32_values_and_a_scale() -> None:
    """Worked by hand: scale = largest / 127 in float16, values to the nearest."""
    row = torch.linspace(-1, 2, 40)
    back = gguf.rounded(torch.stack([row, torch.zeros(40)]), "q8_0")
    for part in (slice(0, 32), slice(32, 40)):
        scale = float((row[part].abs().max() / 127).half())
        steps = back[0, part] / scale
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        assert steps.abs().max().round() == 127
        assert (back[0, part] - row[part]).abs().max() <= 0.51 * scale + 127 * scale * 2**-11
    assert torch.equal(back[1], torch.zeros(40))
    vector = torch.randn(7)
    assert torch.equal(gguf.rounded(vector, "q8_0"), vector)  # norms stay


def test_a_plain_llama_has_single_values_and_all_keys(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    gguf.write(prepared("uniform"), path, vocabulary=vocabulary, name="a name")
    found = fields(path)
    assert found["general.architecture"] == "llama"
    assert found["general.name"] == "a name"
    assert {key: value for key, value in found.items() if key.startswith("llama.")} == {
        "llama.block_count": 3,
        "llama.context_length": 128,
        "llama.embedding_length": 128,
        "llama.feed_forward_length": 256,
        "llama.vocab_size": 300,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 4,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
    }


def test_layers_that_differ_are_arrays(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf.write(prepared("mix"), path, vocabulary=vocabulary, name="m")
    found = fields(path)
    assert found["general.architecture"] == "deci"
    assert found["deci.attention.head_count"] == [8, 8, 8, 8, 8, 8]
    assert found["deci.attention.head_count_kv"] == [1, 1, 0, 0, 8, 2]  # 0: a matrix in its place
    assert found["deci.feed_forward_length"] == [512, 32, 32, 32, 256, 32]
    names = {name.removeprefix("blk.2.") for name in tensors(path) if name.startswith("blk.2.")}
    ffn = {"ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}
    assert names == {"attn_norm.weight", "attn_output.weight", *ffn}

    gguf.write(prepared("attn_none_middle"), path, vocabulary=vocabulary, name="m")
    assert fields(path)["deci.attention.head_count"] == [8, 0, 8]
    assert fields(path)["deci.attention.head_count_kv"] == [4, 0, 4]


def test_neighbours_rotated_are_halves_rotated() -> None:
    """Scores are the same whichever way channels are paired, if both queries and keys moved."""
    head_dim, hidden, position = 8, 12, 5.0
    weight = torch.randn(2 * head_dim, hidden, dtype=torch.float64)
    x = torch.randn(hidden, dtype=torch.float64)
    angles = position * 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turned = torch.polar(torch.ones_like(angles), angles)

    halves = (weight @ x).view(2, 2, head_dim // 2)  # heads, halves, pairs
    expected = torch.complex(halves[:, 0], halves[:, 1]) * turned
    neighbours = (gguf.permuted(weight, head_dim) @ x).view(2, head_dim // 2, 2)
    actual = torch.view_as_complex(neighbours.contiguous()) * turned
    torch.testing.assert_close(actual, expected)
    assert torch.equal(gguf.permuted(gguf.permuted(weight, head_dim), head_dim, back=True), weight)


@torch.no_grad()
def test_llama_3s_scaling_is_a_tensor_of_factors(vocabulary: Vocabulary, tmp_path: Path) -> None:
    decoder = prepared("no_ops", rope_scaling=SCALING, rope_theta=3000.0)
    path = tmp_path / "m.gguf"
    gguf.write(decoder, path, vocabulary=vocabulary, name="m")
    factors = tensors(path)["rope_freqs.weight"].data
    for i, factor in enumerate(factors):  # Llama 3.1's rule, one frequency at a time
        frequency = 3000.0 ** (-2 * i / 16)
        wavelength = 2 * math.pi / frequency
        if wavelength < 32 / 4:
            expected = 1.0
        elif wavelength > 32 / 1:
            expected = 8.0
        else:
            smooth = (32 / wavelength - 1) / (4 - 1)
            expected = 1 / ((1 - smooth) / 8 + smooth)
        assert factor == pytest.approx(expected, rel=1e-5)
    assert min(factors) == 1.0
    assert max(factors) == pytest.approx(8.0)
    assert fields(path)["deci.rope.freq_base"] == 3000.0
    ids = ids_of(2, 100)
    torch.testing.assert_close(gguf_reader.read(path)(ids), decoder(ids), atol=1e-5, rtol=0)
    plain = tmp_path / "plain.gguf"
    gguf.write(prepared("no_ops"), plain, vocabulary=vocabulary, name="m")
    assert "rope_freqs.weight" not in tensors(plain)


@torch.no_grad()
def test_tied_embeddings_and_a_head_size_of_its_own(vocabulary: Vocabulary, tmp_path: Path) -> None:
    decoder = prepared("no_ops", tie_word_embeddings=True, head_dim=32)
    path = tmp_path / "m.gguf"
    gguf.write(decoder, path, vocabulary=vocabulary, name="m")
    assert "output.weight" not in tensors(path)
    assert fields(path)["deci.attention.key_length"] == 32
    assert fields(path)["deci.rope.dimension_count"] == 32
    assert torch.equal(gguf_reader.read(path)(IDS), decoder(IDS))


def test_a_file_that_lacks_a_tensor_or_has_one_too_many(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    decoder = prepared("no_ops")
    path = tmp_path / "m.gguf"
    gguf.write(decoder, path, vocabulary=vocabulary, name="m")
    whole = path.read_bytes()
    name = b"blk.2.ffn_up.weight"
    path.write_bytes(whole.replace(name, b"blk.2.ffn_XX.weight"))
    with pytest.raises(ValueError, match=r"no tensor blk\.2\.ffn_up\.weight"):
        gguf_reader.read(path)
    path.write_bytes(whole.replace(b"\0output.weight", b"\0outXXX.weight"))
    with pytest.raises(ValueError, match=r"do not call for \(outXXX\.weight\)"):
        gguf_reader.read(path)


# --- the tokenizer --------------------------------------------------------------------------------


def edit(folder: Path, out: Path, **changes) -> Path:
    """Copy a tokenizer and change keys of tokenizer.json, `model__` ones within its model."""
    shutil.copytree(folder, out)
    raw = json.loads((out / "tokenizer.json").read_text())
    for key, value in changes.items():
        if key.startswith("model__"):
            raw["model"][key.removeprefix("model__")] = value
        else:
            raw[key] = value
    (out / "tokenizer.json").write_text(json.dumps(raw))
    return out


def test_our_own_tokenizer_is_split_as_qwen_2_does(trained: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(trained)
    tokenizer.add_special_tokens(["<|eot_id|>"])
    tokenizer.end_texts_with("<|eot_id|>")
    out = tmp_path / "t"
    out.mkdir()
    tokenizer.save(out)
    found = read_vocabulary(out, 304)
    assert (found.model, found.pre) == ("gpt2", "qwen2")
    assert found.tokens[:2] == ("<s>", "</s>")
    assert found.tokens[-3:] == ("[PAD301]", "[PAD302]", "[PAD303]")
    kinds = [found.types[i] for i in (0, 1, 2, 300, 303)]
    assert kinds == [CONTROL, CONTROL, NORMAL, CONTROL, UNUSED]
    assert found.adds_bos
    assert (found.bos_token_id, found.eos_token_ids) == (0, (300,))
    assert all(len(merge.split(" ")) == 2 for merge in found.merges)
    assert found.chat_templates == {}


def test_tokens_a_user_added_are_not_control(trained: Path, tmp_path: Path) -> None:
    entry = {"id": 299, "content": "<note>", "special": False}
    rest = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    raw = json.loads((trained / "tokenizer.json").read_text())
    changed = edit(trained, tmp_path / "t", added_tokens=[*raw["added_tokens"], entry | rest])
    vocab = {k: v for k, v in raw["model"]["vocab"].items() if v != 299}
    removed = next(token for token, id in raw["model"]["vocab"].items() if id == 299)
    merges = [m for m in raw["model"]["merges"] if "".join(m) != removed]
    changed = edit(changed, tmp_path / "u", model__vocab=vocab, model__merges=merges)
    found = read_vocabulary(changed, 300)
    assert (found.tokens[299], found.types[299]) == ("<note>", USER_DEFINED)


@pytest.mark.parametrize(
    ("steps", "pre"), [([DIGITS, GPT_2_WORDS], "smollm"), ([GPT_2_WORDS], "gpt-2")]
)
def test_ways_of_splitting_that_llama_cpp_knows(
    steps: list[dict], pre: str, trained: Path, tmp_path: Path
) -> None:
    splitting = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    changed = edit(trained, tmp_path / "t", pre_tokenizer=splitting)
    assert read_vocabulary(changed, 300).pre == pre


def test_llama_3s_tokenizer(data_folder: Path) -> None:
    folder = data_folder / "tokenizers" / "llama3"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    found = read_vocabulary(folder, 128256)
    assert (found.model, found.pre, found.adds_bos) == ("gpt2", "llama-bpe", True)
    assert found.bos_token_id == 128000
    assert found.tokens[128009] == "<|eot_id|>"
    assert found.types[128009] == CONTROL


def spm_ids(vocabulary: Vocabulary, text: str) -> list[int]:
    """Tokenise as llama.cpp does with scores: join the best neighbours, leftmost first."""
    ids = {token: id for id, token in enumerate(vocabulary.tokens)}
    pieces = list((" " if vocabulary.adds_space else "") + text)
    pieces = [piece.replace(" ", "▁") for piece in pieces]
    while True:
        joins = [
            (-vocabulary.scores[ids[a + b]], i)
            for i, (a, b) in enumerate(pairwise(pieces))
            if a + b in ids
        ]
        if not joins:
            break
        _, i = min(joins)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    as_bytes = [[piece] if piece in ids else _bytes(piece) for piece in pieces]
    return [ids[token] for tokens in as_bytes for token in tokens]


def _bytes(piece: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in piece.encode()]


def test_scores_give_the_ids_that_merges_give(stories_folder: Path) -> None:
    found = read_vocabulary(stories_folder, 512)
    assert (found.model, found.adds_space, found.adds_bos) == ("llama", True, True)
    assert [found.types[i] for i in (0, 1, 2, 3, 258, 259)] == [
        *(UNKNOWN, CONTROL, CONTROL, BYTE, BYTE, NORMAL)
    ]
    assert found.eos_token_ids == (2, 1)
    assert found.unk_token_id == 0
    tokenizer = Tokenizer.from_folder(stories_folder)
    story = "Once upon a time, there was a little girl named Lily. She loved the sunny garden. "
    for text in (TEXT, story * 3, "  spaces   within ", "thethethe andand in the", "\t\n"):
        assert spm_ids(found, text) == tokenizer.encode(text), text


def test_a_tokenizer_without_byte_fallback_is_refused(data_folder: Path) -> None:
    folder = data_folder / "models" / "babyllama-char105"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    with pytest.raises(ValueError, match=r"llama.cpp has no tokenizer .*--format decilm"):
        read_vocabulary(folder, 105)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"model__ignore_merges": True},
        {"model__byte_fallback": True},
    ],
    ids=str,
)
def test_a_tokenizer_that_llama_cpp_would_not_follow(
    trained: Path, tmp_path: Path, changes: dict
) -> None:
    changed = edit(trained, tmp_path / "t", **changes)
    with pytest.raises(ValueError, match="so its ids would differ"):
        read_vocabulary(changed, 300)


def test_merges_that_no_scores_can_stand_for(stories_folder: Path, tmp_path: Path) -> None:
    merges = json.loads((stories_folder / "tokenizer.json").read_text())["model"]["merges"]
    fewer = [merge for merge in merges if merge != ["▁th", "e"]]  # ▁t + he still makes ▁the
    assert len(fewer) == len(merges) - 1
    changed = edit(stories_folder, tmp_path / "fewer", model__merges=fewer)
    with pytest.raises(ValueError, match="'▁th' \\+ 'e' is no merge"):
        read_vocabulary(changed, 512)
    apart = [*fewer, ["▁th", "e"]]
    changed = edit(stories_folder, tmp_path / "apart", model__merges=apart)
    with pytest.raises(ValueError, match="merges interleave"):
        read_vocabulary(changed, 512)


def test_more_tokens_than_the_model_embeds(trained: Path) -> None:
    with pytest.raises(ValueError, match="300 tokens, but the model embeds 96"):
        read_vocabulary(trained, 96)


def test_the_chat_template_comes_along(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "t")
    own = json.loads((trained / "tokenizer_config.json").read_text())
    path = tmp_path / "t" / "tokenizer_config.json"
    path.write_text(json.dumps({**own, "chat_template": "in the config"}))
    assert read_vocabulary(tmp_path / "t", 300).chat_templates["default"] == "in the config"
    (tmp_path / "t" / "chat_template.jinja").write_text("a file of its own")
    found = read_vocabulary(tmp_path / "t", 300)
    assert found.chat_templates["default"] == "a file of its own"
    gguf.write(prepared("uniform"), tmp_path / "m.gguf", vocabulary=found, name="m")
    keys = fields(tmp_path / "m.gguf")
    assert keys["tokenizer.chat_template"] == "a file of its own"
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == "qwen2"
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.eos_token_id"] == 1
    assert len(keys["tokenizer.ggml.tokens"]) == 300
