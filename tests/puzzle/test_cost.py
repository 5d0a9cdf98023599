"""Calibration of costs, entries that survive a kill, and a small table measured for real."""

import json
from pathlib import Path

import pytest
from support import stage_run

from fretsaw.checkpoint.folder import read_config
from fretsaw.model.config import BlockConfig
from fretsaw.model.size import kv_bytes, num_params
from fretsaw.puzzle.cost import (
    Entries,
    cost,
    drift_free_medians,
    fit_additive,
    left_out_errors,
)
from fretsaw.puzzle.settings import CostSettings
from fretsaw.puzzle.space import default_alternatives

COSTS = {"fixed": 3.0, "gqa4": 2.0, "gqa2": 1.5, "ffn64": 4.0, "ffn16": 1.0}


def stack(*names: str) -> list[BlockConfig]:
    return [BlockConfig.from_names(*name.split("/")) for name in names]


MODELS = {
    "x2": stack("gqa4/ffn64", "gqa4/ffn64"),
    "x1": stack("gqa4/ffn64"),
    "narrow": stack("gqa4/ffn16"),
    "fewer": stack("gqa2/ffn64"),
    "bare": stack("attn_none/ffn64"),
    "child 0": stack("gqa2/ffn16", "attn_none/ffn64", "gqa4/ffn_none"),
}


def time_of(blocks: list[BlockConfig]) -> float:
    names = [name for b in blocks for name in (b.attention_name, b.ffn_name)]
    return COSTS["fixed"] + sum(COSTS.get(name, 0.0) for name in names)


def test_additive_times_are_taken_apart_exactly() -> None:
    times = {name: time_of(blocks) for name, blocks in MODELS.items()}
    assert fit_additive(MODELS, times) == pytest.approx(COSTS)
    assert left_out_errors(MODELS, times)["child 0"] == pytest.approx(0, abs=1e-9)


def test_costs_are_never_negative() -> None:
    times = {name: time_of(blocks) for name, blocks in MODELS.items()}
    times["narrow"] = 0.5  # an outlier: the narrow FFN would cost less than nothing
    assert min(fit_additive(MODELS, times).values()) >= 0


def test_a_slow_round_changes_nothing() -> None:
    quiet = {"a": [{"decode_ms": 2.0}] * 3, "b": [{"decode_ms": 6.0}] * 3}
    drifting = {
        name: [
            {"decode_ms": entry["decode_ms"] * slow}
            for entry, slow in zip(rows, (1, 5, 1), strict=True)
        ]
        for name, rows in quiet.items()
    }
    assert drift_free_medians(drifting, "decode_ms") == drift_free_medians(quiet, "decode_ms")


def test_a_half_written_entry_is_measured_again(tmp_path: Path) -> None:
    entries = Entries(tmp_path / "costs")
    entries.add("a", {"decode_ms": 1.0})
    with (tmp_path / "costs").open("a") as file:
        file.write('["b", {"decode')
    assert Entries(tmp_path / "costs").values == {"a": {"decode_ms": 1.0}}


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
