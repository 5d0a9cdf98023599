"""The rank stage: what it writes, and that a stopped one goes on."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import stage_run

from fretsaw.puzzle.library.ranking import RANKING, rank
from fretsaw.puzzle.settings import RankSettings
from fretsaw.stage.execute import Interrupted

SETTINGS = RankSettings(tokens=2048, seq_len=64)


def test_a_stopped_ranking_goes_on_and_writes_the_same(tiny: Path, tmp_path: Path) -> None:
    inputs = {name: tiny / name for name in ("parent", "corpus")}
    stopped = stage_run(tmp_path / "a")
    stopped.stop_requested = True
    with pytest.raises(Interrupted):
        rank(SETTINGS, inputs, stopped)
    (kept,) = stopped.resume_folder.iterdir()
    written = kept.stat().st_mtime_ns
    rank(SETTINGS, inputs, stage_run(tmp_path / "a"))
    assert kept.stat().st_mtime_ns == written, "a finished layer is not ranked again"
    rank(SETTINGS, inputs, stage_run(tmp_path / "b"))
    found, whole = (load_file(tmp_path / name / RANKING) for name in "ab")
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    for layer in range(4):
        assert whole[f"layers.{layer}.order"].sort().values.tolist() == list(range(64))
        assert whole[f"layers.{layer}.heads.order"].sort().values.tolist() == [0, 1, 2, 3]
        assert (whole[f"layers.{layer}.kv_heads"] > 0).all()
