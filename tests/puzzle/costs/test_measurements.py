"""Timings that survive a kill, and are found again by what they are of."""

from pathlib import Path

import pytest

from fretsaw.model.config import ModelConfig
from fretsaw.puzzle.costs.measurements import Measurements, key_of
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage.whole import write_json

CONFIG = ModelConfig.uniform(
    num_hidden_layers=2,
    num_key_value_heads=2,
    intermediate_size=16,
    vocab_size=10,
    hidden_size=8,
    num_attention_heads=2,
    head_dim=4,
)


def test_a_half_written_entry_is_measured_again(tmp_path: Path) -> None:
    kept = Measurements(tmp_path / "costs")
    kept.add("a", {"decode_ms": 1.0})
    with (tmp_path / "costs").open("a") as file:
        file.write('["b", {"decode')
    assert Measurements(tmp_path / "costs").values == {"a": {"decode_ms": 1.0}}


def test_another_machine_is_another_key() -> None:
    keys = {
        key_of(Scenario(), {"device": device}, CONFIG, CONFIG.blocks, r)
        for device in ("one", "other")
        for r in range(2)
    }
    assert len(keys) == 4


def test_what_was_measured_is_taken_over(tmp_path: Path) -> None:
    kept = Measurements(tmp_path / "costs")
    keys = [key_of(Scenario(batch=2), {}, CONFIG, CONFIG.blocks, r) for r in range(3)]
    kept.add(keys[0], {"decode_ms": 1.0})
    write_json(
        tmp_path / "measurements.json",
        {key: {"decode_ms": ms} for key, ms in zip(keys, (9.0, 2.0, 6.0), strict=True)},
    )
    kept.take_over(tmp_path / "measurements.json")
    assert kept[keys[0]] == {"decode_ms": 1.0}  # what is here already stays
    (median,) = kept.medians(CONFIG)
    assert median == (str(Scenario(batch=2)), ["gqa2", "ffn16"] * 2, {"decode_ms": 2.0})
    with pytest.raises(ValueError, match="no such file"):
        kept.take_over(tmp_path / "nowhere.json")
