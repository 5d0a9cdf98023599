"""Small tables measured for real, at several scenarios, taken over, refitted, and by roofline."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import stage_run

from fretsaw.checkpoint.folder import read_config
from fretsaw.model.size import kv_bytes, num_params
from fretsaw.puzzle.costs.cost import cost
from fretsaw.puzzle.settings import CostSettings, SpaceSettings
from fretsaw.puzzle.space import default_alternatives
from fretsaw.stage.whole import write_json

SMALL = SpaceSettings(kv_heads=(1,), ffn_percents=(50,))


def test_costs_of_a_small_parent(tiny: Path, tmp_path: Path) -> None:
    settings = CostSettings(
        scenario="batch=4,in=8,out=8,dtype=fp32,device=cpu", rounds=2, layers=1, probes=1
    )
    run = stage_run(tmp_path)
    cost(settings, {"parent": tiny / "parent"}, run)
    costs = json.loads((tmp_path / "costs.json").read_text())
    alternatives, config = costs["alternatives"], read_config(tiny / "parent")
    attention, ffn = default_alternatives(config)
    assert set(alternatives) == {*attention, *ffn}
    params = costs["fixed"]["params"] + 4 * (
        alternatives["gqa4"]["params"] + alternatives["ffn64"]["params"]
    )
    assert params == num_params(config)
    memory = costs["fixed"]["memory_mib"] + 4 * (
        alternatives["gqa4"]["memory_mib"] + alternatives["ffn64"]["memory_mib"]
    )
    expected = num_params(config) * 4 + 4 * 16 * kv_bytes(config, "fp32")
    assert memory == pytest.approx(expected / 2**20)
    assert alternatives["attn_none"]["decode_ms"] == 0

    # Run again on what was persisted: nothing is measured, the table is the same.
    before = (tmp_path / "costs.json").read_text()
    cost(settings, {"parent": tiny / "parent"}, run)
    assert (tmp_path / "costs.json").read_text() == before


def costs_of(tiny: Path, out: Path, settings: CostSettings, **inputs: Path) -> dict:
    cost(settings, {"parent": tiny / "parent", **inputs}, stage_run(out))
    return json.loads((out / "costs.json").read_text())


def test_several_scenarios_taken_over_and_refitted(tiny: Path, tmp_path: Path) -> None:
    several = CostSettings(
        space=SMALL,
        scenario="batch=1/4,in=8,out=8,dtype=fp32,device=cpu",
        rounds=1,
        layers=1,
        probes=1,
    )
    costs = costs_of(tiny, tmp_path / "first", several)
    one, four = costs["scenarios"]
    assert (one["scenario"], four["scenario"]) == (
        "batch=1,in=8,out=8,dtype=fp32,device=cpu",
        "batch=4,in=8,out=8,dtype=fp32,device=cpu",
    )
    assert one.items() <= costs.items()  # the first one's figures stand at the top as well
    assert four["alternatives"]["gqa4"]["memory_mib"] > one["alternatives"]["gqa4"]["memory_mib"]
    assert set(one["noise"]["decode_ms"]) == set(one["noise"]["prefill_ms"])

    # A child that was benched twice as slow as its parent: the same timings, fitted again.
    choices = [["gqa1", "ffn_none"], *[["gqa4", "ffn64"]] * 3]
    speed = {"scenario": four["scenario"], "choices": choices}
    speed |= {phase: {"speedup": 0.5} for phase in ("prefill", "decode")}
    (tmp_path / "bench").mkdir()
    write_json(tmp_path / "bench/speed.json", speed)
    again = {"measured": tmp_path / "first", "refit": tmp_path / "bench"}
    costs = costs_of(tiny, tmp_path / "second", several, **again)
    before = json.loads((tmp_path / "first/measurements.json").read_text())
    assert json.loads((tmp_path / "second/measurements.json").read_text()) == before
    assert "refit" not in costs["scenarios"][0]
    refit = costs["scenarios"][1]["refit"]["refit"]["decode_ms"]
    assert refit["measured"] == pytest.approx(2 * costs["scenarios"][1]["parent"]["decode_ms"])
    errors = [abs(refit[when] / refit["measured"] - 1) for when in ("refitted", "foreseen")]
    assert errors[0] < errors[1]
    assert "refit" in costs["scenarios"][1]["left_out_error"]["decode_ms"]

    for changed, complaint in (
        (replace(several, scenario="batch=2,in=8,out=8"), "bench it there"),
        (replace(several, space=SpaceSettings(kv_heads=(2,))), "give a child of it"),
        (replace(several, engine="roofline"), "leave --refit out"),
    ):
        with pytest.raises(ValueError, match=complaint):
            costs_of(tiny, tmp_path / complaint, changed, refit=tmp_path / "bench")


def test_roofline_needs_no_device_and_takes_measured_constants(tiny: Path, tmp_path: Path) -> None:
    settings = CostSettings(
        space=SMALL, engine="roofline", scenario="batch=4,in=8,out=8,dtype=fp32,device=cpu"
    )
    plain = costs_of(tiny, tmp_path / "plain", settings)
    assert set(plain["alternatives"]) == {
        *("gqa4", "gqa1", "attn_linear", "attn_none"),
        *("ffn64", "ffn32", "ffn_linear", "ffn_none"),
    }
    assert plain["parent"]["decode_ms"] == pytest.approx(
        plain["fixed"]["decode_ms"]
        + 4 * sum(plain["alternatives"][name]["decode_ms"] for name in ("gqa4", "ffn64"))
    )
    # Times of which every one is three times the roofline's: so are the costs that follow.
    names = [["gqa4", "ffn64"]] * 4
    config = read_config(tiny / "parent")
    shape = [config.hidden_size, config.num_attention_heads, config.head_dim, config.vocab_size]
    times = {phase: 3 * plain["parent"][phase] for phase in ("prefill_ms", "decode_ms")}
    key = json.dumps([plain["scenario"], {}, shape, names, 0])
    (tmp_path / "times").mkdir()
    write_json(tmp_path / "times/measurements.json", {key: times})
    fitted = costs_of(tiny, tmp_path / "fitted", settings, measured=tmp_path / "times")
    assert fitted["parent"]["decode_ms"] == pytest.approx(times["decode_ms"], rel=1e-3)
    assert fitted["parent"]["prefill_ms"] == pytest.approx(times["prefill_ms"], rel=1e-3)


@pytest.mark.parametrize(
    ("scenario", "complaint"),
    [
        ("batch=1,in=8000,out=8", "the model's context is"),
        ("batch=1,in=8,out=8,device=h100x3", "4 query heads cannot be divided among 3"),
        ("batch=1,in=8,out=8,device=toaster", "is unknown"),
    ],
)
def test_what_cannot_be_costed(tiny: Path, tmp_path: Path, scenario: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        costs_of(tiny, tmp_path, CostSettings(scenario=scenario, engine="roofline"))
