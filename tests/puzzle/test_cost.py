"""Calibration of costs, entries that survive a kill, and a small table measured for real."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import stage_run

from fretsaw.checkpoint.folder import read_config
from fretsaw.model.size import kv_bytes, num_params
from fretsaw.puzzle.cost import Entries, cost, fit_line
from fretsaw.puzzle.settings import CostSettings


def test_the_line_is_found() -> None:
    sums = np.array([10.0, 6.0, 4.0])
    fixed, scale = fit_line(sums, 3 + 1.2 * sums)
    assert (fixed, scale) == (pytest.approx(3), pytest.approx(1.2))


def test_the_line_never_has_a_negative_intercept() -> None:
    sums = np.array([10.0, 6.0, 4.0])
    fixed, scale = fit_line(sums, 1.5 * sums - 1)
    assert fixed == 0
    assert 1.2 < scale < 1.5


def test_one_model_fixes_the_intercept() -> None:
    assert fit_line(np.array([4.0]), np.array([6.0])) == (2.0, 1.0)


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
    assert set(alternatives) == {
        *("gqa4", "gqa2", "gqa1", "attn_none"),
        *("ffn64", "ffn48", "ffn32", "ffn16", "ffn8", "ffn_none"),
    }
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
