"""The search stage: several scenarios, engines, and what is said where nothing fits."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import stage_run

from fretsaw.puzzle.search.search import search
from fretsaw.puzzle.search.solutions import Infeasible
from fretsaw.puzzle.settings import SearchSettings
from fretsaw.stage.whole import write_json

MS = {"gqa4": 2.0, "gqa2": 1.5, "attn_none": 0.0, "ffn64": 4.0, "ffn32": 2.0, "ffn_linear": 0.1}
KV = {"gqa4": 4.0, "gqa2": 2.0}
ATTENTION = {"gqa4": 0.0, "gqa2": 0.3, "attn_none": 2.0}
FFN = {"ffn64": 0.0, "ffn32": 0.01, "ffn_linear": 0.02}


def scenario(batch: int) -> str:
    return f"batch={batch},in=8,out=8,dtype=fp32,device=cpu"


def costs_at(batch: int, ms_per_batch: float, name: str = "") -> dict[str, Any]:
    """Times grow with the batch as given, memory is weights and keys and values."""
    alternatives = {}
    for part, ms in MS.items():
        memory = 2.0 * ms + KV.get(part, 0.0) * batch
        phases = {"prefill_ms": ms * batch, "decode_ms": ms * ms_per_batch}
        alternatives[part] = {**phases, "memory_mib": memory, "params": ms}
    fixed = {"prefill_ms": 1.0, "decode_ms": 1.0, "memory_mib": 1.0, "params": 10}
    return {"scenario": name or scenario(batch), "fixed": fixed, "alternatives": alternatives}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Four layers, measured at batches of 4, 8 and 16 (decode grows less than they do)."""
    layer = {
        half: {name: {"score": score} for name, score in scores.items()}
        for half, scores in (("attention", ATTENTION), ("ffn", FFN))
    }
    others = [costs_at(8, 1.2), costs_at(16, 1.6), costs_at(4, 1.0)]
    others.append(costs_at(1, 0.5, "batch=1,in=64,out=8,dtype=fp32,device=cpu"))
    for name in ("scores", "costs"):
        (tmp_path / name).mkdir()
    write_json(tmp_path / "scores/scores.json", {"layers": [layer] * 4})
    costs = {"units": {}, **costs_at(4, 1.0), "scenarios": others}
    write_json(tmp_path / "costs/costs.json", costs)
    return {"scores": tmp_path / "scores", "costs": tmp_path / "costs"}


def found(inputs: dict[str, Path], out: Path, **settings: Any) -> tuple[list, dict]:
    search(SearchSettings(margin=0.0, **settings), inputs, stage_run(out))
    solutions = json.loads((out / "solutions.json").read_text())
    return solutions, json.loads((out / "forecast.json").read_text())


def test_the_batch_is_chosen_with_the_child(inputs, tmp_path) -> None:
    """Parent at batch 4: 25 ms of decode, 1 + 4 (2 x 6 + 16) = 113 MiB.

    2x decode at batch 8 is 25 ms for twice the tokens, at batch 16 50 ms for four times. The parent
    itself takes 1 + 24 x 1.2 = 29.8 ms at 8 and 1 + 24 x 1.6 = 39.4 ms at 16: there it stays whole.
    """
    solutions, forecast = found(inputs, tmp_path / "free", target="2x decode")
    assert forecast["scenario"] == scenario(16)
    assert forecast["reference"] == scenario(4)
    assert solutions[0]["choices"] == [["gqa4", "ffn64"]] * 4
    assert forecast["speedup"]["decode"] == pytest.approx((16 / 39.4) / (4 / 25))
    assert [one["scenario"] for one in forecast["scenarios"]] == [scenario(b) for b in (4, 8, 16)]
    assert [one["score"] for one in forecast["scenarios"]] == sorted(
        (one["score"] for one in forecast["scenarios"]), reverse=True
    )

    # With the parent's memory at batch 4 as the limit, the larger batches must give up heads.
    target = "1.5x decode, 113MiB"
    _, limited = found(inputs, tmp_path / "limited", target=target)
    for one in limited["scenarios"]:
        if "child" in one:
            assert one["child"]["memory_mib"] <= 113
            tokens_per_ms = (
                int(one["scenario"].split(",")[0].split("=")[1]) / (one["child"]["decode_ms"])
            )
            assert tokens_per_ms >= 1.5 * 4 / 25 * (1 - 1e-9)
    scores = [one["score"] for one in limited["scenarios"] if "score" in one]
    assert limited["score"] == min(scores)


def test_a_target_may_name_its_scenario(inputs, tmp_path) -> None:
    _, forecast = found(inputs, tmp_path / "one", target="1.4x decode @ batch=4")
    assert forecast["scenario"] == scenario(4)
    assert forecast["child"]["decode_ms"] <= 25 / 1.4
    target = "1.3x decode @ batch=1, 1.4x decode"  # both hold, the second at any batch
    solutions, forecast = found(inputs, tmp_path / "both", target=target)
    at_one = "decode_ms at batch=1,in=64,out=8,dtype=fp32,device=cpu"
    assert solutions[0]["costs"][at_one] <= (1 + 24 * 0.5) / 1.3
    assert at_one in forecast["bounds"]
    with pytest.raises(ValueError, match=r"batch=3 names no scenario .*batch=4,in=8"):
        found(inputs, tmp_path / "none", target="2x decode @ batch=3")


def test_the_engine_decides_what_is_taken(inputs, tmp_path) -> None:
    small = {"target": "60% params", "pareto_points": 3}
    _, vllm = found(inputs, tmp_path / "vllm", **small)
    _, ours = found(inputs, tmp_path / "transformers", engine="transformers", **small)
    assert vllm["score"] > ours["score"]  # one matrix is nearly as good, and nearly free
    front = json.loads((tmp_path / "vllm/front.json").read_text())
    assert not any("linear" in name for one in front for pair in one["choices"] for name in pair)
    with pytest.raises(ValueError, match=r"no attention that vllm takes.* over 8 devices"):
        found(inputs, tmp_path / "tp", tensor_parallel=8, **small)


def test_every_method_stands_beside_the_chosen_child(inputs, tmp_path) -> None:
    solutions, _ = found(inputs, tmp_path / "mip", target="1.4x decode @ batch=4")
    rows = json.loads((tmp_path / "mip/baselines.json").read_text())
    assert [row["method"] for row in rows] == [
        *("greedy", "uniform", "depth", "contiguous", "max_params", "random")
    ]
    bound = 25 / 1.4
    reached = [row for row in rows if "score" in row]
    assert len(reached) >= 4
    for row in reached:
        assert row["score"] >= solutions[0]["score"] - 1e-9
        assert row["costs"]["decode_ms"] <= bound * (1 + 1e-9)
    by_uniform, _ = found(
        inputs, tmp_path / "uniform", target="1.4x decode @ batch=4", method="uniform"
    )
    assert by_uniform[0]["choices"] == rows[1]["choices"]


def test_joint_scores_and_blocks_become_pairs_of_names(inputs, tmp_path) -> None:
    path = inputs["scores"] / "scores.json"
    layers = json.loads(path.read_text())["layers"]
    for layer in layers:  # halved together they are worse than the sum says
        layer["blocks"] = {"gqa2+ffn32": {"score": 5.0}}
    pairs = [{"choices": [[0, "gqa2"], [1, "gqa2"]], "score": 3.0}]
    write_json(path, {"layers": layers, "pairs": pairs})
    solutions, _ = found(inputs, tmp_path / "joint", target="60% params", engine="vllm")
    table = json.loads((tmp_path / "joint/table.json").read_text())
    assert len(table["pairs"]) == 5
    assert ["gqa2", "ffn32"] not in solutions[0]["choices"]

    blocks = {"gqa4+ffn64": 0.0, "gqa4+ffn32": 0.1, "gqa2+ffn32": 0.2}
    layer = {"block": {name: {"score": score} for name, score in blocks.items()}}
    write_json(path, {"layers": [layer] * 4})
    solutions, _ = found(inputs, tmp_path / "block", target="77% params")  # 26 of 34
    assert solutions[0]["choices"] == [["gqa4", "ffn32"]] * 4


# --- infeasible -----------------------------------------------------------------------------------


def complaint(inputs: dict[str, Path], out: Path, **settings: Any) -> str:
    with pytest.raises(Infeasible) as error:
        search(SearchSettings(**settings), inputs, stage_run(out))
    return str(error.value)


def test_what_is_reachable_is_said_in_the_targets_words_and_can_be_asked(inputs, tmp_path) -> None:
    asked = {"target": "100x decode @ batch=4", "margin": 0.1}
    text = complaint(inputs, tmp_path / "a", **asked)
    # gqa2 and ffn32 in layer 0, ffn32 alone in the others: 1 + 3.5 + 3 x 2 = 10.5 ms of 25.
    assert "no child reaches 100x decode @ batch=4 at batch=4" in text
    assert "reachable: 2.14x decode (decode_ms 10.5, 0.225 asked)" in text  # 0.9 x 25 / 10.5
    search(
        SearchSettings(target="2.14x decode @ batch=4", margin=0.1),
        inputs,
        stage_run(tmp_path / "b"),
    )


def test_together_out_of_reach_names_each_way_out(inputs, tmp_path) -> None:
    text = complaint(inputs, tmp_path / "a", target="2x decode, 20% memory @ batch=4", margin=0.0)
    assert "with the rest as asked" in text
    assert "missing all alike" in text


def test_the_setting_in_the_way_is_named(inputs, tmp_path) -> None:
    text = complaint(inputs, tmp_path / "a", target="40% params")
    assert "set engine to transformers, since vllm refuses a part" in text
    assert "set margin" not in text
    text = complaint(inputs, tmp_path / "b", target="2.3x decode @ batch=4", margin=0.1)
    assert "set margin, which is 0.1, to 0" in text


def test_other_searches_have_a_place_among_the_solutions(inputs, tmp_path) -> None:
    target = f"1.5x decode @ {scenario(4).replace(',', ' ')}"
    alone, _ = found(inputs, tmp_path / "alone", target=target, num_solutions=4)
    pooled, _ = found(
        inputs, tmp_path / "pool", target=target, num_solutions=4, pool=("max_params", "depth")
    )
    rows = json.loads((tmp_path / "pool/baselines.json").read_text())
    others = {row["method"]: row.get("choices") for row in rows}
    assert others["depth"] is None  # it finds nothing here, so the search's own take its place
    wanted = [*(one["choices"] for one in alone[:3]), others["max_params"]]
    assert [one["choices"] for one in pooled] == wanted
    with pytest.raises(ValueError, match="no place is left"):
        SearchSettings(num_solutions=1, pool=("greedy",))
