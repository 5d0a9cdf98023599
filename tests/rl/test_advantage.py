"""Advantages against numbers worked by hand."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_equal_fractions_among_the_others_have_no_spread():
    # Others of 0.1 are 0.7 three times: std 0, so A = 0.1 - 0.7. Others of a 0.7: b = 1.5 / 3, and
    # the squares of 0.2, 0.2, 0.4 less their mean give std = sqrt(0.24 / 3) = sqrt(0.08).
    found = advantages([0.7, 0.7, 0.7, 0.1])
    assert found == pytest.approx([0.2 / math.sqrt(0.08)] * 3 + [-0.6])
    assert advantages([0.3, 0.3, 0.9]) == pytest.approx([-0.3 / 0.3, -0.3 / 0.3, 0.6])


def test_what_only_rounding_made_is_nothing():
    # Finished answers are equal, so none of them is better; 0.7 + 0.7 + 0.7 is no 2.1 in binary.
    found = advantages([0.7, 0.7, 0.7, 0.7, 0.1], [True, True, True, True, False])
    assert found[:4] == [0.0] * 4
    # The cut one: b = 2.8 / 3, s = 1.96 / 3 and s - b^2 < 0, so its std counts as 0.
    assert found[4] == pytest.approx(0.1 - 2.8 / 3)
    assert advantages([0.1 + 0.2, 0.3, 0.3, 0.3]) == [0.0] * 4


def test_a_small_spread_that_is_real_counts():
    # Others of the first: 0.5, 0.5, 0.5 + 3e-9: b = 0.5 + 1e-9, std = sqrt(2) 1e-9.
    found = advantages([0.5, 0.5, 0.5, 0.5 + 3e-9])
    assert found[0] == pytest.approx(-1 / math.sqrt(2), rel=1e-6)
    assert found[3] == pytest.approx(3e-9, rel=1e-6)  # the others of the last are equal


def exact(rewards: list[float], finished: list[bool]) -> tuple[list[float], list[float]]:
    """Return advantages and variances from exact sums, by the definition."""
    r, n = [Fraction(reward) for reward in rewards], sum(finished)
    found, variances = [], []
    for i in range(len(r)):
        others = [r[j] for j in range(len(r)) if j != i and finished[j]]
        b = sum(others, Fraction(0)) / (n - 1)
        variance = sum((x * x for x in others), Fraction(0)) / (n - 1) - b * b
        variances.append(float(variance))
        std = math.sqrt(variance) if variance > 0 else 1.0
        found.append(float(r[i] - b) / std)
    return found, variances


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.integers(2, 16).flatmap(
        lambda size: st.tuples(
            st.lists(
                st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0])),
                min_size=size,
                max_size=size,
            ),
            st.lists(st.booleans(), min_size=size, max_size=size),
        )
    )
)
def test_advantages_are_those_of_exact_sums(group):
    rewards, finished = group
    found = advantages(rewards, finished)
    if sum(finished) < 2 or len(set(rewards)) == 1:
        assert found == [0.0] * len(rewards)
        return
    wanted, variances = exact(rewards, finished)
    for value, right, variance in zip(found, wanted, variances, strict=True):
        assert math.isfinite(value)
        if abs(variance) > 1e-9:  # elsewhere rounding decides whether there is a spread at all
            assert value == pytest.approx(right, rel=1e-4, abs=1e-9)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.6, 0.7, 0.9]), min_size=2, max_size=12))
def test_no_rounding_grows_into_an_advantage(rewards):
    assert all(abs(value) <= 40 for value in advantages(rewards))
