"""Spikes: the rule by hand, and which snapshots are kept."""

import math
from pathlib import Path

import pytest
from torch import nn

from fretsaw.training.settings import SpikeSettings
from fretsaw.training.spikes import Snapshots, SpikeWatch, is_spike
from fretsaw.training.state import TrainingState


def test_the_rule_by_hand() -> None:
    # Losses 1, 2, 3, 4: median 2.5, deviations 1.5 .5 .5 1.5, their median 1; 2.5 + 3 * 1 = 5.5.
    recent = [[1.0, 7.0], [4.0, 7.0], [2.0, 7.0], [3.0, 7.0]]
    rule = {"mads": 3.0, "window": 8}
    assert not is_spike(recent, [5.4, 7.0], **rule)
    assert is_spike(recent, [5.6, 7.0], **rule)
    # A norm that never moved: its deviation counts as 1 % of 7, so up to 7.21.
    assert not is_spike(recent, [2.0, 7.2], **rule)
    assert is_spike(recent, [2.0, 7.3], **rule)


def test_what_is_not_finite_always_is_one_and_a_short_history_sees_no_other() -> None:
    assert is_spike([], [math.nan, 1.0], mads=3.0, window=8)
    assert is_spike([], [1.0, math.inf], mads=3.0, window=8)
    assert not is_spike([[1.0, 1.0]] * 3, [1e9, 1.0], mads=3.0, window=8)


def test_the_last_but_one_is_gone_back_to(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    model = nn.Linear(1, 1, bias=False)
    for done in (0, 50, 100):
        nn.init.constant_(model.weight, done)
        snapshots.save(done, model.state_dict())
    assert snapshots.restore(model, since=60) == 100
    assert snapshots.restore(model) == 50
    assert model.weight.item() == 50
    snapshots.trim()
    assert len([*tmp_path.iterdir()]) == 2
    snapshots.drop_after(60)
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot-00000050"]


def test_a_rollback_counts_what_it_lost_and_the_rate_rises_again(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    settings = SpikeSettings(max_rollbacks=1, spike_window=4, snapshot_every=2, rewarm_steps=4)
    watch = SpikeWatch(settings, TrainingState(tmp_path, model, []))
    watch.begin()
    for step in range(1, 6):
        watch.remember([1.0, 1.0])
        watch.state.step = step
        nn.init.constant_(model.weight, step)
        if watch.is_snapshot_due:
            watch.take_snapshot()
    assert len(watch.state.recent) == 4
    assert watch.rewarm_factor == 1.0
    assert not watch.sees_spike([1.0, 1.0])
    assert watch.sees_spike([1.0, math.nan])
    # Of the weights after 2 and 4 steps to the first; the sixth batch is lost with those since.
    watch.go_back([1.0, math.nan], since=0)
    assert model.weight.item() == 2
    assert (watch.state.step, watch.num_done, watch.num_lost) == (6, 2, 4)
    assert watch.rewarm_factor == 0.25
    with pytest.raises(ValueError, match="step 6: loss 9 with a gradient norm of 1 is a spike"):
        watch.go_back([9.0, 1.0], since=0)


def test_without_rollbacks_nothing_is_a_spike(tmp_path: Path) -> None:
    watch = SpikeWatch(SpikeSettings(), TrainingState(tmp_path, nn.Linear(1, 1), []))
    watch.begin()
    assert not watch.sees_spike([math.nan, math.inf])
    assert not watch.is_snapshot_due
    assert [*tmp_path.iterdir()] == []
