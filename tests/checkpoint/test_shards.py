"""Safetensors files: single and sharded, and what is wrong with the broken ones."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fretsaw.checkpoint import folder, headers, shards
from fretsaw.model.config import ModelConfig
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
LIMIT = 12_000


@pytest.fixture
def decoder() -> Decoder:
    decoder = Decoder(CONFIG)
    decoder.init_weights(0)
    return decoder


@pytest.fixture
def sharded(tmp_path: Path, decoder: Decoder) -> Path:
    """The same weights in several files with an index."""
    folder.write(decoder, tmp_path)
    (tmp_path / headers.SINGLE).unlink()
    shards.write_tensors(tmp_path, decoder.state_dict(), dtype=torch.float32, max_shard_bytes=LIMIT)
    return tmp_path


@torch.no_grad()
def test_shards_are_read_back_equal(sharded: Path, decoder: Decoder) -> None:
    files = headers.weight_files(sharded)
    assert len(files) > 2
    assert all(f.stat().st_size < LIMIT + 2000 for f in files)
    index = json.loads((sharded / headers.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in decoder.parameters())
    assert index["weight_map"].keys() == decoder.state_dict().keys()
    ids = torch.arange(12)[None]
    assert torch.equal(folder.load(sharded)(ids), decoder(ids))
    theirs = AutoModelForCausalLM.from_pretrained(sharded)
    torch.testing.assert_close(theirs(ids).logits, decoder(ids), atol=1e-4, rtol=0)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    name = headers.weight_files(sharded)[1].name
    (sharded / name).unlink()
    with pytest.raises(ValueError, match=rf"1 of the \d+ shards named in .* missing \({name}"):
        folder.load(sharded)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    file = headers.weight_files(sharded)[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file.name}: not a whole safetensors file"):
        folder.load(sharded)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid", b"x" * 9]
)
def test_what_is_no_safetensors_file(sharded: Path, content: bytes) -> None:
    (sharded / headers.SINGLE).write_bytes(content)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        folder.load(sharded)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index(sharded: Path, content: str) -> None:
    (sharded / headers.INDEX).write_text(content)
    with pytest.raises(
        ValueError, match=r"index\.json: not (an index of shards|JSON|a JSON object)"
    ):
        folder.load(sharded)


def test_pickles_are_refused(sharded: Path) -> None:
    (sharded / headers.INDEX).unlink()
    (sharded / "pytorch_model.bin").touch()
    with pytest.raises(
        ValueError, match=r"pickles .pytorch_model.bin.*convert them to safetensors"
    ):
        folder.load(sharded)


def test_no_weights_at_all(sharded: Path) -> None:
    (sharded / headers.INDEX).unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors and no"):
        folder.load(sharded)
