"""Whole children correct the scores: a search of corrected scores names a child that was built."""

import json
from pathlib import Path

import pytest
from support import stage_run

from fretsaw.artifact import Request
from fretsaw.puzzle.choose import search
from fretsaw.puzzle.cost import cost
from fretsaw.puzzle.score import score
from fretsaw.puzzle.settings import (
    CostSettings,
    ScoreSettings,
    SearchSettings,
    SpaceSettings,
    VerifySettings,
)
from fretsaw.puzzle.table import read_table
from fretsaw.puzzle.verify import verify
from fretsaw.stage import Interrupted, execute

SPACE = SpaceSettings(kv_heads=(1,), ffn_percents=(50, 25), linear=False)
SEARCH = SearchSettings(target="0.6x params", pareto_points=2)
SETTINGS = VerifySettings(
    children=3, rounds=3, alpha=0.5, repair_tokens=512, tokens=512, seq_len=64, batch_rows=4
)


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small parent's scores, roofline costs and a search of them."""
    root = tmp_path_factory.mktemp("made")
    base = {name: tiny / name for name in ("parent", "corpus", "ranking")}
    scoring = ScoreSettings(
        space=SPACE, repair_tokens=512, tokens=512, seq_len=64, batch_rows=4, joint_pairs=0
    )
    timing = CostSettings(
        engine="roofline", space=SPACE, scenario="batch=4,in=8,out=8,dtype=fp32,device=cpu"
    )
    score(scoring, base, stage_run(root / "scores"))
    cost(timing, {"parent": tiny / "parent"}, stage_run(root / "costs"))
    inputs = {"scores": root / "scores", "costs": root / "costs"}
    run(search, "search", SEARCH, inputs, root / "search")
    return base | {"scores": root / "scores", "search": root / "search", "costs": root / "costs"}


def run(function, name: str, settings, inputs: dict[str, Path], out: Path) -> dict:
    """Run a stage with its manifest."""
    request = Request.of(name, settings, inputs, 0)
    return execute(function, request, settings, out, device="cpu", dtype="fp32")


def test_the_corrected_search_names_a_measured_child(made: dict[str, Path], tmp_path: Path) -> None:
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking", "scores", "search")}
    metrics = run(verify, "verify", SETTINGS, inputs, tmp_path / "verify")["metrics"]
    correction = json.loads((tmp_path / "verify/correction.json").read_text())
    children = correction["children"]
    assert 3 <= metrics["children"] == len(children) <= 6
    assert [child["is_chosen"] for child in children].count(True) == 1
    assert all(child["measured"] > 0 and child["sum"] > 0 for child in children)
    assert correction["before"]["measured"] == children[0]["measured"]
    assert correction["after"]["measured"] <= 1.05 * correction["before"]["measured"]

    again = {"scores": tmp_path / "verify", "costs": made["costs"]}
    run(search, "search", SEARCH, again, tmp_path / "search")
    table = read_table(tmp_path / "search/table.json")
    assert len(table.pairs) == len(correction["pairs"])
    (solution,) = json.loads((tmp_path / "search/solutions.json").read_text())
    assert solution["choices"] in [child["choices"] for child in children]
    assert solution["choices"] == correction["after"]["choices"]


def test_measured_children_are_kept_when_stopped(made: dict[str, Path], tmp_path: Path) -> None:
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking", "scores", "search")}
    stopped = stage_run(tmp_path / "a")
    stopped.stop_requested = True
    with pytest.raises(Interrupted):
        verify(SETTINGS, inputs, stopped)
    kept = (stopped.resume_folder / "children.jsonl").read_text()
    assert len(kept.splitlines()) == 1
    going_on = stage_run(tmp_path / "a")
    verify(SETTINGS, inputs, going_on)
    assert (going_on.resume_folder / "children.jsonl").read_text().startswith(kept)
    verify(SETTINGS, inputs, stage_run(tmp_path / "b"))
    for name in ("scores.json", "correction.json"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def test_a_search_that_is_not_exact_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    settings = SearchSettings(target="0.6x params", pareto_points=2, method="greedy")
    run(search, "search", settings, {k: made[k] for k in ("scores", "costs")}, tmp_path / "greedy")
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking", "scores")}
    with pytest.raises(ValueError, match=r"method mip \(here greedy\)"):
        verify(SETTINGS, inputs | {"search": tmp_path / "greedy"}, stage_run(tmp_path / "v"))
