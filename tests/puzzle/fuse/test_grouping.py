"""The exact choice of groups against brute force."""

import itertools
import random

import pytest

from fretsaw.puzzle.fuse.grouping import Grouping, best_groupings, reaching
from fretsaw.puzzle.library.runs import Group


def all_groupings(groups: list[Group]) -> list[tuple[Group, ...]]:
    """Return every set of disjoint groups."""
    found = []
    for count in range(len(groups) + 1):
        for chosen in itertools.combinations(groups, count):
            layers = [i for group in chosen for i in group.layers]
            if len(layers) == len(set(layers)):
                found.append(chosen)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_the_front_is_that_of_brute_force(seed: int) -> None:
    chance = random.Random(seed)
    runs = [range(5), range(7, 10)] if seed % 2 else [range(1, 6)]
    groups = [Group(a, b) for run in runs for a in run for b in run if b > a]
    penalties = {g: chance.uniform(-0.1 if seed % 3 == 0 else 0, 1) for g in groups}
    savings = {g: float(chance.choice([-1, 1, 2, 3, chance.uniform(0, 3)])) for g in groups}
    front = best_groupings(penalties, savings)
    everything = [
        (sum(penalties[g] for g in chosen), sum(savings[g] for g in chosen))
        for chosen in all_groupings([g for g in groups if savings[g] > 0])
    ]
    for one in front:
        assert one.penalty == pytest.approx(sum(penalties[g] for g in one.groups))
        assert one.saving == pytest.approx(sum(savings[g] for g in one.groups))
    for budget in [0.0, *(penalty for penalty, _ in everything)]:
        most = max((s for p, s in everything if p <= budget + 1e-12), default=None)
        chosen = max((one.saving for one in front if one.penalty <= budget + 1e-9), default=None)
        assert chosen == (most if most is None else pytest.approx(most))
    for goal in [saving - 1e-9 for _, saving in everything if saving > 0]:
        least = min(p for p, s in everything if s >= goal)
        chosen = reaching(front, goal)
        assert chosen is not None
        assert chosen.penalty == pytest.approx(least)


def test_nothing_is_fused_for_nothing() -> None:
    assert best_groupings({Group(0, 1): 0.0}, {Group(0, 1): 0.0}) == [Grouping(0.0, 0.0)]
    assert best_groupings({}, {}) == [Grouping(0.0, 0.0)]
    assert reaching(best_groupings({}, {}), 1.0) is None
