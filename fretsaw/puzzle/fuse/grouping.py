"""Which neighbouring FFNs to fuse: every trade of penalty against saving, exactly.

A grouping takes disjoint groups. Its penalty (KL) and its saving (milliseconds, or layers) are the
sums of its groups'. A dynamic programme over the layers keeps, for the layers so far, the groupings
that no other beats in both; what it returns is that front. No torch.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fretsaw.puzzle.library.runs import Group
from fretsaw.scenario.target import Target


class Grouping(NamedTuple):
    """Disjoint groups, and what they cost and save together."""

    penalty: float
    saving: float
    groups: tuple[Group, ...] = ()


def best_groupings(
    penalties: Mapping[Group, float], savings: Mapping[Group, float]
) -> list[Grouping]:
    """Return the front of least penalty and most saving, from none fused to the most saved.

    Groups of no saving are never taken. Penalties may be negative.
    """
    front = [Grouping(0.0, 0.0)]
    fronts = {-1: front}  # by the last layer that is decided
    ends: dict[int, list[Group]] = {}
    for group in sorted(penalties):
        if savings[group] > 0:
            ends.setdefault(group.last, []).append(group)
    for last in sorted(ends):
        found = list(front)
        for group in ends[last]:
            before = fronts[max(end for end in fronts if end < group.first)]
            found += [
                Grouping(
                    one.penalty + penalties[group],
                    one.saving + savings[group],
                    (*one.groups, group),
                )
                for one in before
            ]
        fronts[last] = front = undominated(found)
    return front


def undominated(groupings: list[Grouping]) -> list[Grouping]:
    """Return those that save more than any of no more penalty, least penalty first."""
    kept: list[Grouping] = []
    for one in sorted(groupings, key=lambda g: (g.penalty, -g.saving, len(g.groups))):
        if not kept or one.saving > kept[-1].saving:
            kept.append(one)
    return kept


def reaching(front: Sequence[Grouping], saving: float) -> Grouping | None:
    """Return the grouping of least penalty that saves so much, or None."""
    return next((one for one in front if one.saving >= saving), None)


def most_first(front: Sequence[Grouping], max_kl: float) -> list[Grouping]:
    """Return the groupings of the front within a budget, what saves most first, nothing last."""
    within_it = [one for one in reversed(front) if one.penalty <= max_kl and one.groups]
    return [*within_it, Grouping(0.0, 0.0)]


def least_reaching(front: Sequence[Grouping], target: Target, before: float) -> Grouping:
    """Return the grouping of least KL that reaches the target from `before` milliseconds."""
    found = reaching(front, before - target.bound(before))
    if found is None:
        most = target.reachable(before - front[-1].saving, before)
        raise ValueError(
            f"fuse: target {target.text} is out of reach; fusing reaches {most} at most here, the "
            "rest is for the search"
        )
    return found
