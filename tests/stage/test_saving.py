"""How often a loop saves: never more than a small share of its time, and always before it stops."""

import time
from pathlib import Path

import pytest

from fretsaw.stage import execute
from fretsaw.stage.execute import Interrupted, StageRun
from fretsaw.stage.progress import Progress


class Clock:
    """Seconds that pass when a step or a save takes them."""

    def __init__(self) -> None:
        self.now, self.saved = 1000.0, 0.0

    def save(self) -> None:
        self.now, self.saved = self.now + 4.0, self.saved + 4.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def running(tmp_path: Path, total: int, clock: Clock) -> StageRun:
    run = StageRun(tmp_path, 0, "cpu", "fp32", Progress("test", tmp_path), saved_at=clock.now)
    run.progress.start("training", total)
    return run


def test_saving_is_a_small_share_of_a_run_of_slow_steps(tmp_path: Path, clock: Clock) -> None:
    run, num_steps = running(tmp_path, 1000, clock), 200
    for step in range(1, num_steps):
        clock.now += 35.0  # each slower than save_every_s
        run.step(step, save=clock.save, save_every_s=30.0)
    assert 0 < clock.saved <= 1.1 * execute.SAVING_SHARE * (clock.now - 1000.0)


def test_a_stop_the_last_step_and_who_asks_for_each_step_save_always(
    tmp_path: Path, clock: Clock
) -> None:
    run = running(tmp_path, 9, clock)
    for step in range(1, 4):
        run.step(step, save=clock.save, save_every_s=0.0)
        clock.now += 1e-3
    assert clock.saved == 8.0  # the first follows at once on the start, so no time has passed
    run.stop_requested = True
    with pytest.raises(Interrupted):
        run.step(4, save=clock.save, save_every_s=1e9)
    assert clock.saved == 12.0
    run.stop_requested = False
    run.step(9, save=clock.save, save_every_s=1e9)
    assert clock.saved == 16.0
