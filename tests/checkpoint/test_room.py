"""A checkpoint that a device has no room for is refused before any of its weights is read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fretsaw.checkpoint import folder, room
from fretsaw.cli import main
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import num_params
from fretsaw.model.without_storage import without_storage

CONFIG = ModelConfig.uniform(
    num_hidden_layers=2,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=64,
    hidden_size=32,
    num_attention_heads=4,
    head_dim=8,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    decoder = Decoder(CONFIG)
    decoder.init_weights(0)
    folder.save(decoder, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_takes_what_its_weights_take(
    saved: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    needed = dtype.itemsize * num_params(CONFIG)
    for load in (folder.load, folder.load_served):
        monkeypatch.setattr(room, "free_bytes", lambda: needed)
        assert load(saved, dtype=dtype).device.type == "cpu"
        monkeypatch.setattr(room, "free_bytes", lambda: needed - 1)
        with pytest.raises(ValueError, match=r"its weights take .* free on cpu") as refused:
            load(saved, dtype=dtype)
        assert ("in bf16" in str(refused.value)) == (dtype == torch.float32)


def test_it_is_said_before_a_weight_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\xff\xff\xff\x7f")  # NaN
    with pytest.raises(ValueError, match="holds NaN"):
        folder.load(saved)
    monkeypatch.setattr(room, "free_bytes", lambda: 0)
    with pytest.raises(ValueError, match=r"but 0\.0 MiB are free on cpu, room for 0\.0 million"):
        folder.load(saved)


def test_every_stage_that_opens_a_checkpoint_refuses_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, ranking, corpus = (str(tiny / name) for name in ("parent", "ranking", "corpus"))
    text, own = ["--corpus", corpus], ["--parent", parent]
    short = ["--tokens", "8192", "--seq-len", "64"]
    train = [*short, "--heldout-tokens", "256"]
    commands = {
        "rank": [*own, *text, *short],
        "score": [*own, *text, "--ranking", ranking, *short, "--repair-tokens", "4096"],
        "bld": [*own, *text, "--ranking", ranking, *short],
        "fuse": [parent, *text, *short],
        "teach": [*own, *text, *short],
        "distill": ["--child", parent, *own, *text, *train],
        "cpt": ["--model", parent, *text, *train],
        "eval": ["--model", parent, *text, *short],
        "bench": [*own, "--child", parent, "--scenario", "batch=1,in=8,out=8,dtype=fp32"],
        "sft": ["--model", parent, "--source", "world"],
        "corpus": [*own, "--source", "self", "--max-tokens", "4096", "--seq-len", "64"],
    }
    monkeypatch.setattr(room, "free_bytes", lambda: 1000)
    for name, options in commands.items():
        where = ["--out", str(tmp_path / name), "--device", "cpu", "--dtype", "fp32"]
        assert main([name, *options, *where]) == 2, name
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith(f"fretsaw: {parent}: its weights take "), (name, told)
        assert "take a smaller model or a machine with more memory" in told
    assert main(["generate", parent, "Tom", "--device", "cpu"]) == 2
    assert main(["export", parent, "--out", str(tmp_path / "export")]) == 2
    assert capsys.readouterr().err.count("its weights take") == 2


LIMITED = """
import resource, sys
import fretsaw, torch
from fretsaw.cli import main
from fretsaw.scenario.free_memory import _kilobytes
from pathlib import Path
held = _kilobytes(Path("/proc/self/status"))["VmSize"]
resource.setrlimit(resource.RLIMIT_AS, (held + 2**30, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it holds processes to the limit on Linux")
def test_a_process_that_is_let_less_says_so(stories_folder: Path, tmp_path: Path) -> None:
    """A file of 8 GiB that is nothing but its header and a hole."""
    out = tmp_path / "large"
    out.mkdir()
    config = json.loads((stories_folder / "config.json").read_text())
    large = {"hidden_size": 16_384, "intermediate_size": 16_384, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 128, "num_key_value_heads": 128, "head_dim": 128}
    (out / "config.json").write_text(json.dumps(config | large | heads))
    folder.copy_tokenizer(stories_folder, out)
    header, at = {}, 0
    with without_storage():
        shapes = Decoder(folder.read_config(out)).state_dict()
    for name, weight in shapes.items():
        end = at + 2 * weight.numel()
        header[name] = {"dtype": "BF16", "shape": [*weight.shape], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with (out / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    command = [sys.executable, "-c", LIMITED, "generate", str(out), "Once", "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert f"fretsaw: {out}: its weights take" in result.stderr
    assert len(result.stderr.splitlines()) == 1
