"""From scores and costs to a checkpoint: the stages joined, on a small parent."""

import json
from pathlib import Path

import pytest
import torch
from support import stage_run

from fretsaw.bench.measure import bench
from fretsaw.bench.settings import BenchSettings
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.eval.evaluate import evaluate, kept_accuracy
from fretsaw.eval.settings import EvalSettings
from fretsaw.puzzle.children.assemble import assemble
from fretsaw.puzzle.search.bounds import join, parent_solution
from fretsaw.puzzle.search.search import search
from fretsaw.puzzle.search.solutions import Infeasible
from fretsaw.puzzle.settings import AssembleSettings, SearchSettings
from fretsaw.stage.whole import write_json


@pytest.fixture
def measured(tmp_path: Path) -> dict[str, Path]:
    """Scores and costs of four layers, by hand: halving an FFN costs little, the rest much."""
    attention = {"gqa4": {"score": 0.0}, "gqa2": {"score": 0.3}, "attn_none": {"score": 2.0}}
    ffn = {"ffn64": {"score": 0.0}, "ffn32": {"score": 0.01}, "ffn_none": {"score": 3.0}}
    ms = {"gqa4": 2.0, "gqa2": 1.5, "attn_none": 0.0, "ffn64": 4.0, "ffn32": 2.0, "ffn_none": 0.0}
    costs = {
        "scenario": "batch=4,in=8,out=8,dtype=fp32,device=cpu",
        "units": {},
        "fixed": {"prefill_ms": 1.0, "decode_ms": 1.0, "memory_mib": 1.0, "params": 10},
        "alternatives": {
            name: {"prefill_ms": x, "decode_ms": x, "memory_mib": x, "params": x}
            for name, x in ms.items()
        },
    }
    (tmp_path / "scores").mkdir()
    (tmp_path / "costs").mkdir()
    write_json(
        tmp_path / "scores/scores.json", {"layers": [{"attention": attention, "ffn": ffn}] * 4}
    )
    write_json(tmp_path / "costs/costs.json", costs)
    return {"scores": tmp_path / "scores", "costs": tmp_path / "costs"}


def test_the_parent_in_the_table(measured: dict[str, Path]) -> None:
    scores = json.loads((measured["scores"] / "scores.json").read_text())
    costs = json.loads((measured["costs"] / "costs.json").read_text())
    parent = parent_solution(join(scores, costs))
    assert parent.costs["decode_ms"] == 1 + 4 * (2 + 4)
    assert parent.choices == (("gqa4", "ffn64"),) * 4


def test_a_target_becomes_a_child_in_three_stages(
    tiny: Path, tmp_path: Path, measured: dict[str, Path]
) -> None:
    settings = SearchSettings(target="1.4x decode", margin=0.0)
    search(settings, measured, stage_run(tmp_path / "search"))
    forecast = json.loads((tmp_path / "search/forecast.json").read_text())
    solution = json.loads((tmp_path / "search/solutions.json").read_text())[0]
    # 25 / 1.4 = 17.9 ms: four halved FFNs give 17, with the least score, 0.04
    assert solution["choices"] == [["gqa4", "ffn32"]] * 4
    assert solution["score"] == pytest.approx(0.04)
    assert forecast["speedup"]["decode"] == pytest.approx(25 / 17)

    inputs = {name: tiny / name for name in ("parent", "corpus", "ranking")}
    inputs["search"] = tmp_path / "search"
    small = AssembleSettings(tokens=2048, seq_len=64)
    assemble(small, inputs, stage_run(tmp_path / "repaired"))
    plain = AssembleSettings(tokens=2048, seq_len=64, repair=False)
    assemble(plain, inputs, stage_run(tmp_path / "plain"))
    errors = [
        json.loads((tmp_path / f / "repairs.json").read_text())[-1]["error"]
        for f in ("repaired", "plain")
    ]
    assert errors[0] < errors[1]

    figures = {}
    for name in ("repaired", "plain"):
        models = {"model": tmp_path / name, "parent": tiny / "parent", "corpus": tiny / "corpus"}
        evaluate(EvalSettings(tokens=1024, seq_len=64), models, stage_run(tmp_path / f"e-{name}"))
        figures[name] = json.loads((tmp_path / f"e-{name}/results.json").read_text())
    assert 0 < figures["repaired"]["kl"] < figures["plain"]["kl"]
    assert figures["repaired"]["parent_loss"] == figures["plain"]["parent_loss"]

    models = {"parent": tiny / "parent", "child": tmp_path / "repaired"}
    models["search"] = tmp_path / "search"
    served = BenchSettings(scenario="batch=4,in=8,out=8,dtype=fp32,device=cpu", rounds=2)
    bench(served, models, stage_run(tmp_path / "bench"))
    speed = json.loads((tmp_path / "bench/speed.json").read_text())
    assert speed["decode"]["predicted"] == pytest.approx(25 / 17)
    assert speed["decode"]["speedup"] > 0


def test_the_child_of_full_size_is_the_parent(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    choices = [["gqa4", "ffn64"]] * 4
    write_json(tmp_path / "search/solutions.json", [{"score": 0, "choices": choices}])
    inputs = {name: tiny / name for name in ("parent", "corpus", "ranking")}
    inputs["search"] = tmp_path / "search"
    assemble(AssembleSettings(tokens=1024, seq_len=64), inputs, stage_run(tmp_path / "child"))
    ids = torch.randint(300, (2, 30))
    parent, child = checkpoint.load(tiny / "parent"), checkpoint.load(tmp_path / "child")
    torch.testing.assert_close(child(ids), parent(ids), rtol=0, atol=1e-5)


def test_what_cannot_be_reached_says_what_can(tmp_path: Path, measured) -> None:
    with pytest.raises(Infeasible, match="decode_ms"):
        search(SearchSettings(target="100x decode"), measured, stage_run(tmp_path / "search"))


def test_kept_accuracy_by_hand() -> None:
    parent, child = [1.0] * 80 + [0.0] * 20, [1.0] * 78 + [0.0] * 22
    task = {"parent": {"on": {"grades": parent}}, "child": {"on": {"grades": child}}}
    kept = kept_accuracy(task)
    assert kept["kept"] == pytest.approx(78 / 80)
    low, high = kept["interval"]
    assert low < 78 / 80 < high <= 1.0
