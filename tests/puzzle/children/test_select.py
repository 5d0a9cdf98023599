"""Candidates healed briefly, one of them chosen, its assembled weights handed on."""

import json
from pathlib import Path

import pytest

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.distill.settings import DistillSettings, TrainSettings
from fretsaw.distill.train import distill
from fretsaw.puzzle.children.assemble import assemble
from fretsaw.puzzle.children.select import select
from fretsaw.puzzle.settings import AssembleSettings, SelectSettings
from fretsaw.stage.artifact import StageRequest
from fretsaw.stage.execute import execute

BRIEF = DistillSettings(
    train=TrainSettings(
        tokens=1024, batch_tokens=512, micro_batch_tokens=512, seq_len=64, heldout_tokens=512
    )
)


def make(function, kind: str, settings, inputs: dict[str, Path], out: Path) -> Path:
    execute(
        function,
        StageRequest.of(kind, settings, inputs, 0),
        settings,
        out,
        device="cpu",
        dtype="fp32",
    )
    return out


@pytest.fixture
def candidates(tiny: Path, tmp_path: Path) -> dict[str, Path]:
    """Two children, the second far nearer to the parent though it has the worse sum of scores."""
    (tmp_path / "search").mkdir()
    wide, narrow = [["gqa4", "ffn32"]] * 4, [["gqa1", "ffn8"]] * 4
    solutions = [{"score": 0.1, "choices": narrow}, {"score": 0.2, "choices": wide}]
    (tmp_path / "search/solutions.json").write_text(json.dumps(solutions))
    text = {"parent": tiny / "parent", "corpus": tiny / "corpus"}
    inputs = {**text, "ranking": tiny / "ranking", "search": tmp_path / "search"}
    found: dict[str, Path] = {}
    for i in range(2):
        settings = AssembleSettings(solution=i, tokens=1024, seq_len=64)
        start = make(assemble, "assemble", settings, inputs, tmp_path / f"assemble{i}")
        healed = make(distill, "distill", BRIEF, {**text, "child": start}, tmp_path / f"brief{i}")
        found |= {f"assembled{i or ''}": start, f"child{i or ''}": healed}
    return found


def test_the_best_healed_is_handed_on_as_assembled(candidates, tmp_path: Path) -> None:
    out = make(select, "select", SelectSettings(), candidates, tmp_path / "select")
    chosen = json.loads((out / "chosen.json").read_text())
    figures = [entry["figure"] for entry in chosen["candidates"]]
    assert chosen["candidate"] == 1
    assert figures[1] < figures[0]
    assert [entry["solution"] for entry in chosen["candidates"]] == [0, 1]
    winner, weights = candidates["assembled1"], "model.safetensors"
    assert (out / weights).read_bytes() == (winner / weights).read_bytes()
    assert checkpoint.read_config(out).blocks == checkpoint.read_config(winner).blocks
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["metrics"]["solution"] == 1
    assert weights in manifest["outputs"]


def test_what_does_not_belong_together_is_refused(candidates, tmp_path: Path) -> None:
    swapped = {**candidates, "child": candidates["child1"], "child1": candidates["child"]}
    with pytest.raises(ValueError, match="not healed from"):
        make(select, "select", SelectSettings(), swapped, tmp_path / "a")
    with pytest.raises(ValueError, match=r"no figure 'accuracy'; it has .*heldout_kl"):
        make(select, "select", SelectSettings(figure="accuracy"), candidates, tmp_path / "b")
    del candidates["assembled1"]
    with pytest.raises(ValueError, match="2 healed children and 1 assembled"):
        make(select, "select", SelectSettings(), candidates, tmp_path / "c")
