"""Advantages against numbers worked by hand."""

import math

import pytest
import torch

from fretsaw.rl.advantage import group_advantages


def advantages(rewards, finished=None, normalise=True):
    rewards = torch.tensor([rewards], dtype=torch.float64)
    valid = (
        torch.ones_like(rewards, dtype=torch.bool) if finished is None else torch.tensor([finished])
    )
    return group_advantages(rewards, valid, normalise=normalise)[0].tolist()


def test_three_of_eight_right():
    # A right one: b = 2/7, std = sqrt(2/7 - 4/49) = sqrt(10)/7, so A = (5/7) / (sqrt(10)/7)
    # = 5/sqrt(10). A wrong one: b = 3/7, std = sqrt(3/7 - 9/49) = sqrt(12)/7, A = -3/sqrt(12).
    found = advantages([1, 1, 1, 0, 0, 0, 0, 0])
    assert found == pytest.approx([5 / math.sqrt(10)] * 3 + [-3 / math.sqrt(12)] * 5)
    assert found[0] == pytest.approx(1.5811, abs=1e-4)
    assert found[3] == pytest.approx(-0.8660, abs=1e-4)
    plain = advantages([1, 1, 1, 0, 0, 0, 0, 0], normalise=False)
    assert plain == pytest.approx([5 / 7] * 3 + [-3 / 7] * 5)


def test_a_single_right_one_is_not_scaled_and_two_are():
    # Alone, the others have std 0, so A = 1 - 0. Of two: b = 1/7, std = sqrt(1/7 - 1/49).
    assert advantages([1] + [0] * 7)[0] == 1.0
    assert advantages([1, 1] + [0] * 6)[0] == pytest.approx(6 / math.sqrt(6))


def test_a_truncated_answer_is_left_out_of_the_baselines_and_judged_all_the_same():
    # Seven right and one cut: the divisor is 7 - 1 for the cut one too, so its b is 7/6; s - b^2 is
    # negative, the std counts as 0. A right one has b = 6/6.
    found = advantages([1] * 7 + [0], [True] * 7 + [False])
    assert found == pytest.approx([0.0] * 7 + [-7 / 6])


def test_nothing_to_prefer_is_exactly_nothing():
    assert advantages([0.3] * 8) == [0.0] * 8
    assert advantages([1.0] * 4) == [0.0] * 4
    assert advantages([1, 0, 0, 0], [True, False, False, False]) == [0.0] * 4
    assert advantages([1, 0], [False, False]) == [0.0] * 2


def test_groups_do_not_know_one_another():
    first, second = [1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0]
    both = group_advantages(
        torch.tensor([first, second], dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool)
    )
    assert both.tolist() == [advantages(first), advantages(second)]
