"""The learning-rate schedules at their corners."""

import pytest

from fretsaw.training.schedule import warmup_then
from fretsaw.training.settings import Schedule


def rate(step: int, schedule: Schedule = "cosine") -> float:
    return warmup_then(schedule, step, num_steps=100, num_warmup=10, min_ratio=0.1)


def test_it_warms_up_to_the_peak_and_ends_at_the_minimum() -> None:
    assert rate(0) == 0.1
    assert rate(9) == 1.0
    assert abs(rate(54) - 0.55) < 1e-12  # halfway down the cosine: (1 + 0.1) / 2
    assert abs(rate(99) - 0.1) < 1e-12


def test_a_line_is_halfway_at_half_and_a_constant_stays() -> None:
    assert abs(rate(54, "linear") - 0.55) < 1e-12
    assert abs(rate(31, "linear") - (1 - 0.9 * 22 / 90)) < 1e-12
    assert abs(rate(99, "linear") - 0.1) < 1e-12
    assert {rate(step, "constant") for step in range(9, 100)} == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_it_rises_then_falls(schedule: Schedule) -> None:
    rates = [rate(step, schedule) for step in range(100)]
    assert rates[:10] == [(step + 1) / 10 for step in range(10)]
    assert rates[9:] == sorted(rates[9:], reverse=True)
