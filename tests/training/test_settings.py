"""Settings of the update name what is wrong."""

import math

import pytest

from fretsaw.training.settings import UpdateSettings


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"learning_rate": 0.0}, "learning_rate: 0.0; must be positive"),
        ({"learning_rate": math.inf}, "learning_rate: inf; must be positive and finite"),
        ({"muon_learning_rate": -1.0}, "muon_learning_rate: -1.0; must be positive"),
        ({"grad_clip": 0.0}, "grad_clip: 0.0; must be positive"),
        ({"min_lr_ratio": -0.5}, "min_lr_ratio: -0.5; lies in 0 to 1"),
        ({"warmup_ratio": math.nan}, "warmup_ratio: nan; lies in 0 to 1"),
        ({"weight_decay": -0.1}, "weight_decay: -0.1; give at least 0"),
        ({"beta1": 1.0}, "beta1: 1.0; lies in 0 to 1, 1 excluded"),
        ({"beta2": math.nan}, "beta2: nan; lies in 0 to 1, 1 excluded"),
    ],
)
def test_settings_say_what_is_wrong(change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UpdateSettings(**change)


def test_no_clipping_is_allowed() -> None:
    assert UpdateSettings(grad_clip=math.inf).grad_clip == math.inf
