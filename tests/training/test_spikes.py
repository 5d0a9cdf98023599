"""Spikes: the rule by hand, and which snapshots are kept."""

import math
from pathlib import Path

from torch import nn

from fretsaw.training.spikes import Snapshots, is_spike


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
