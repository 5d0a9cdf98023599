"""Serving a scenario gives both phases, whatever the layers are."""

from pathlib import Path

import pytest
from support import stage_run

from fretsaw.bench.measure import bench, serve
from fretsaw.bench.settings import BenchSettings
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.scenario.scenario import Scenario

SCENARIO = "batch=4,in=8,out=4,dtype=fp32,device=cpu"


def test_both_phases_take_time(tiny: Path) -> None:
    times = serve(checkpoint.load(tiny / "parent"), Scenario.parse(SCENARIO))
    assert min(times.values()) > 0


def test_a_precision_that_is_not_served_is_refused(tiny: Path, tmp_path: Path) -> None:
    models = {"parent": tiny / "parent", "child": tiny / "parent"}
    settings = BenchSettings(scenario=SCENARIO.replace("fp32", "fp8"))
    with pytest.raises(ValueError, match="dtype=fp8 is not served"):
        bench(settings, models, stage_run(tmp_path))


def test_without_a_forecast_nothing_is_predicted(tiny: Path, tmp_path: Path) -> None:
    models = {"parent": tiny / "parent", "child": tiny / "parent"}
    metrics = bench(BenchSettings(scenario=SCENARIO, rounds=3), models, stage_run(tmp_path))
    assert 0.2 < metrics["decode_speedup"] < 5
    assert "predicted" not in (tmp_path / "speed.json").read_text()
