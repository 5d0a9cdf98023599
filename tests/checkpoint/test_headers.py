"""Headers and shard names: what is broken is one sentence before any weight is read."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fretsaw.checkpoint import folder, headers, shards
from fretsaw.checkpoint.expected import expected_tensors
from fretsaw.cli import main
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Decoder

CONFIG = ModelConfig.uniform(
    num_hidden_layers=2,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=64,
    hidden_size=32,
    num_attention_heads=4,
    head_dim=8,
)
MIXED = tuple(
    BlockConfig.from_names(*names)
    for names in (
        ("gqa1", "ffn20"),
        ("attn_none", "ffn_linear"),
        ("attn_linear", "ffn_none"),
        ("gqa2@fp8", "ffn48@int8"),
        ("attn_none", "ffn_none"),
    )
)


def network(config: ModelConfig = CONFIG) -> Decoder:
    decoder = Decoder(config)
    decoder.init_weights(0)
    return decoder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder.save(network(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(saved: Path) -> Path:
    (saved / headers.SINGLE).unlink()
    weights = network().state_dict()
    shards.write_tensors(saved, weights, dtype=torch.float32, max_shard_bytes=12_000)
    return saved


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_expected_is_what_the_network_has(tied: bool) -> None:
    config = replace(CONFIG, blocks=MIXED, tie_word_embeddings=tied)
    with torch.device("meta"):
        weights = Decoder(config).state_dict()
    expected = {name: shape for name, (shape, _) in expected_tensors(config).items()}
    assert expected == {name: tuple(weight.shape) for name, weight in weights.items()}


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..", ".", ""),
        *("a\\b.safetensors", "a\0.safetensors", "model.bin", ".safetensors", "config.json"),
        *(None, 3, True, ["a.safetensors"], {"a": 1}),
    ],
)
def test_an_index_names_files_of_its_own_folder_only(sharded: Path, name: Any) -> None:
    (sharded.parent / "model.safetensors").write_bytes(b"secret")
    index = json.loads((sharded / headers.INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (sharded / headers.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"which is no \.safetensors file of its own folder"):
        folder.check(sharded)


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".safetensors", "\ud83d.safetensors", "é.safetensors"]
)
def test_a_name_that_is_no_file(sharded: Path, name: str) -> None:
    index = json.loads((sharded / headers.INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (sharded / headers.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="are missing") as refused:
        folder.check(sharded)
    str(refused.value).encode()


def test_a_folder_in_a_shards_place_is_missing(sharded: Path) -> None:
    file = headers.weight_files(sharded)[0]
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match="are missing"):
        folder.check(sharded)


def test_the_hubs_cache_of_links_is_read(sharded: Path) -> None:
    blobs = sharded.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(sharded.iterdir())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(os.path.join("..", "blobs", str(number)))
    assert folder.load(sharded).config == CONFIG


# --- files ----------------------------------------------------------------------------------------


def edit_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return damage


def entry(**changes: Any) -> Callable[[Path], None]:
    return edit_header(lambda header: header["model.norm.weight"].update(changes))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda f: f.write_bytes(b""), "empty"),
    "short": (lambda f: f.write_bytes(b"\1\0"), "too few for its header"),
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-100]), "bytes, and"),
    "cut header": (lambda f: f.write_bytes(f.read_bytes()[:100]), "too few for its header"),
    "longer": (lambda f: f.write_bytes(f.read_bytes() + b"x"), "bytes, and"),
    "length": (lambda f: f.write_bytes(b"\xff" * 8 + f.read_bytes()[8:]), "too few"),
    "not JSON": (lambda f: f.write_bytes(struct.pack("<Q", 4) + b"{{{{"), "not JSON"),
    "not UTF-8": (lambda f: f.write_bytes(struct.pack("<Q", 4) + b"\xff" * 4), "not JSON"),
    "deep": (lambda f: f.write_bytes(struct.pack("<Q", 10**5) + b"[" * 10**5), "not JSON"),
    "long number": (
        lambda f: f.write_bytes(struct.pack("<Q", 5000) + b"1" * 5000),
        r"model\.safetensors: .*not JSON",
    ),
    "a list": (lambda f: f.write_bytes(struct.pack("<Q", 2) + b"[]"), "no JSON object"),
    "LFS": (
        lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS pointer.*git lfs pull",
    ),
    "no entry": (edit_header(lambda h: h.update({"model.norm.weight": 3})), "neither type"),
    "no place": (entry(data_offsets=[0]), "neither type"),
    "overlap": (entry(data_offsets=[0, 128]), "comes next"),
    "outside": (entry(data_offsets=[10**9, 10**9 + 128]), "comes next"),
    "size": (entry(shape=[31]), "takes 128 bytes"),
    "negative": (entry(shape=[-32]), "has the shape"),
    "missing": (edit_header(lambda h: h.pop("model.norm.weight")), "comes next|bytes, and"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_one_sentence(saved: Path, fault: str) -> None:
    damage, message = BROKEN[fault]
    damage(saved / headers.SINGLE)
    with pytest.raises(ValueError, match=message):
        folder.check(saved)
    with pytest.raises(ValueError, match=message):
        folder.load(saved)


@pytest.mark.parametrize(
    "command", ["inspect", "plan", "compress", "compress --dry-run", "generate"]
)
@pytest.mark.parametrize("fault", ["LFS", "cut", "overlap"])
def test_commands_refuse_a_broken_file(
    command: str, fault: str, stories_folder: Path, tmp_path: Path, capsys
) -> None:
    model, out, text = tmp_path / "model", tmp_path / "out", tmp_path / "text.txt"
    shutil.copytree(stories_folder, model)
    text.write_text("Once upon a time.")
    damage, _ = BROKEN[fault]
    if fault == "overlap":
        damage = edit_header(lambda h: h["model.norm.weight"].update(data_offsets=[4, 260]))
    damage(model / headers.SINGLE)
    name, *more = command.split()
    arguments = {
        "inspect": [],
        "plan": [],
        "generate": ["Once"],
        "compress": ["--data", str(text), "--target", "1.5x decode", "--out", str(out)],
    }
    assert main([name, str(model), *arguments[name], *more]) == 2
    error = capsys.readouterr().err
    assert "not a whole safetensors file" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_shard_without_the_tensor_that_the_index_promises(sharded: Path) -> None:
    index = json.loads((sharded / headers.INDEX).read_text())
    names = sorted(set(index["weight_map"].values()))
    first = index["weight_map"]["model.norm.weight"]
    index["weight_map"]["model.norm.weight"] = next(name for name in names if name != first)
    (sharded / headers.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"says that model.norm.weight is in .* does not hold it"):
        folder.check(sharded)


def test_a_single_file_counts_before_shards(sharded: Path) -> None:
    shards.write_tensors(sharded, network().state_dict(), dtype=torch.float32)
    assert headers.weight_files(sharded) == [sharded / headers.SINGLE]
    folder.check(sharded)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_refused_where_it_is_there(saved: Path, content: str) -> None:
    folder.check(saved)
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        folder.check(saved, needs_tokenizer=True)
    (saved / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        folder.check(saved)


# --- what the files say beside the weights --------------------------------------------------------


@pytest.mark.parametrize("stated", [None, "float32", "bfloat16", "int4", 7])
@pytest.mark.parametrize("stored", ["fp32", "bf16", "fp16"])
def test_the_precision_is_that_of_the_file(saved: Path, stored: str, stated: Any) -> None:
    shutil.rmtree(saved)
    folder.save(network(), saved, dtype=stored)
    raw = json.loads((saved / "config.json").read_text())
    del raw["dtype"], raw["torch_dtype"]
    (saved / "config.json").write_text(json.dumps({**raw, "dtype": stated}))
    assert folder.read_dtype(saved) == stored


def test_without_weights_the_config_says_the_precision(saved: Path) -> None:
    (saved / headers.SINGLE).unlink()
    assert folder.read_dtype(saved) == "fp32"


@pytest.mark.parametrize(
    ("given", "kept"), [(0, 0), (63, 63), (None, None), (-1, None), (64, None), ("x", None)]
)
def test_the_padding_id_is_kept_where_it_is_embedded(saved: Path, given: Any, kept: Any) -> None:
    raw = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**raw, "pad_token_id": given}))
    folder.save(folder.load(saved), saved.with_name("again"))
    again = json.loads((saved.with_name("again") / "config.json").read_text())
    assert again.get("pad_token_id") == kept


def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder.save(network(), tmp_path / "model")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()} == {0o640}


def test_a_number_of_too_many_digits_names_its_file(saved: Path) -> None:
    (saved / "config.json").write_text('{"vocab_size": ' + "1" * 5000 + "}")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        folder.check(saved)
