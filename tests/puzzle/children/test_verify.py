"""Whole children correct the search: what stands in its place is the best of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import stage_run

from fretsaw.puzzle.children.verify import verify
from fretsaw.puzzle.costs.cost import cost
from fretsaw.puzzle.scores.score import score
from fretsaw.puzzle.search.search import search
from fretsaw.puzzle.search.table_json import read_table
from fretsaw.puzzle.settings import (
    CostSettings,
    ScoreSettings,
    SearchSettings,
    SpaceSettings,
    VerifySettings,
)
from fretsaw.stage.artifact import StageRequest
from fretsaw.stage.execute import Interrupted, execute

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
    request = StageRequest.of(name, settings, inputs, 0)
    return execute(function, request, settings, out, device="cpu", dtype="fp32")


@pytest.mark.parametrize("rounds", [0, 3])
def test_the_best_measured_child_takes_the_searchs_place(
    made: dict[str, Path], tmp_path: Path, rounds: int
) -> None:
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking", "search")}
    metrics = run(verify, "verify", replace(SETTINGS, rounds=rounds), inputs, tmp_path / "verify")[
        "metrics"
    ]
    correction = json.loads((tmp_path / "verify/correction.json").read_text())
    children = correction["children"]
    assert 3 <= metrics["children"] == len(children) <= 3 + rounds
    assert [child["is_chosen"] for child in children].count(True) == 1
    assert all(child["measured"] > 0 and child["sum"] > 0 for child in children)
    assert correction["before"]["measured"] == children[0]["measured"]
    assert correction["after"]["measured"] == min(child["measured"] for child in children)

    table = read_table(tmp_path / "verify/table.json")
    assert len(table.pairs) == len(correction["pairs"])
    solutions = json.loads((tmp_path / "verify/solutions.json").read_text())
    assert solutions[0]["choices"] == correction["after"]["choices"]
    figures = [solution["score"] for solution in solutions]
    assert figures == sorted(child["measured"] for child in children)
    before, after = (
        json.loads(
            (made["search"] if name == "search" else tmp_path / name)
            .joinpath("forecast.json")
            .read_text()
        )
        for name in ("search", "verify")
    )
    assert after["child"] == solutions[0]["costs"]
    assert all(after["child"][name] <= bound for name, bound in after["bounds"].items())
    for phase in ("prefill", "decode"):  # by hand: the parent's time over the child's
        parent, child = after["parent"][f"{phase}_ms"], after["child"][f"{phase}_ms"]
        assert after["speedup"][phase] == pytest.approx(parent / child)
    assert after["target"] == before["target"]
    others = {row["method"]: row for row in json.loads(
        (tmp_path / "verify/baselines.json").read_text())}  # fmt: skip
    assert "greedy" in others


def test_measured_children_are_kept_when_stopped(made: dict[str, Path], tmp_path: Path) -> None:
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking", "search")}
    stopped = stage_run(tmp_path / "a")
    stopped.stop_requested = True
    settings = replace(SETTINGS, judge="replay")
    with pytest.raises(Interrupted):
        verify(settings, inputs, stopped)
    kept = (stopped.resume_folder / "children.jsonl").read_text()
    assert len(kept.splitlines()) == 1
    going_on = stage_run(tmp_path / "a")
    verify(settings, inputs, going_on)
    assert (going_on.resume_folder / "children.jsonl").read_text().startswith(kept)
    verify(settings, inputs, stage_run(tmp_path / "b"))
    for name in ("solutions.json", "correction.json"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def test_a_search_that_is_not_exact_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    settings = SearchSettings(target="0.6x params", pareto_points=2, method="greedy")
    run(search, "search", settings, {k: made[k] for k in ("scores", "costs")}, tmp_path / "greedy")
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking")}
    with pytest.raises(ValueError, match=r"method mip \(here greedy\)"):
        verify(SETTINGS, inputs | {"search": tmp_path / "greedy"}, stage_run(tmp_path / "v"))
