"""Why nothing fits: which limits bind, what can be reached, and what to relax."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fretsaw.puzzle.search.highs import TIME_LIMIT_S, least_cost, solve, solve_nearest
from fretsaw.puzzle.search.program import Program, within


@dataclass(frozen=True)
class Reach:
    """What children can come to, where no child meets all limits."""

    limits: dict[str, float]
    alone: dict[str, float]  # the least of each cost, whatever the others
    relaxed: dict[str, float]  # the least of each with the other limits kept, where they can be
    nearest: dict[str, float] | None  # the costs of the child that misses all limits least
    factor: float  # by which all limits must be raised alike for that child

    @property
    def binding(self) -> list[str]:
        """The limits that can't be met even alone."""
        return [name for name, limit in self.limits.items() if not within(self.alone[name], limit)]


class Infeasible(ValueError):
    """No child meets the limits; the message says which bind and what can be reached."""

    def __init__(self, message: str, reach: Reach | None = None):
        super().__init__(message)
        self.reach = reach


def find_reach(
    program: Program, limits: Mapping[str, float], time_limit_s: float = TIME_LIMIT_S
) -> Reach:
    """Return the nearest children to limits that none meets."""
    relaxed = {}
    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        costs = [decision.costs[name] for decision in program.decisions]
        answer = solve(program, others, objective=costs, time_limit_s=time_limit_s)
        if answer is not None:
            relaxed[name] = program.cost(name, answer[0])
    nearest, factor = None, float("inf")
    if all(limit > 0 for limit in limits.values()):
        pick = solve_nearest(program, limits, time_limit_s)
        if pick is not None:
            nearest = {name: program.cost(name, pick) for name in limits}
            factor = max(nearest[name] / limit for name, limit in limits.items())
    alone = {name: least_cost(program, name, time_limit_s) for name in limits}
    return Reach(dict(limits), alone, relaxed, nearest, factor)


def explain(reach: Reach) -> str:
    """Say in one sentence which limits bind, what can be reached, and what to do."""
    wanted = " and ".join(f"{name} <= {limit:g}" for name, limit in reach.limits.items())
    alone = ", ".join(f"{name} {ceil(value)}" for name, value in reach.alone.items())
    if reach.binding:
        reason = f"{' and '.join(reach.binding)} cannot go that low"
    else:
        reason = "each can be met alone but not together"
    ways = []
    if reach.relaxed:
        raised = (f"raise {name} to {ceil(value)}" for name, value in reach.relaxed.items())
        rest = " with the rest as it is" if len(reach.limits) > 1 else ""
        ways.append(" or ".join(raised) + rest)
    if reach.nearest and len(reach.limits) > 1:
        raised = (f"{name} to {ceil(value)}" for name, value in reach.nearest.items())
        ways.append(f"raise all alike: {', '.join(raised)}")
    remedy = ", or ".join(ways) or "raise more than one of them"
    return (
        f"search: no child has {wanted}: {reason}; the smallest reachable, each alone: {alone}; "
        f"{remedy}, or add cheaper alternatives"
    )


def ceil(value: float) -> str:
    """Write four decimals' worth of a limit, rounded up so that it can be met when typed back."""
    if value == 0:
        return "0"
    unit = 10.0 ** (int(np.floor(np.log10(abs(value)))) - 4)
    return f"{np.ceil(value / unit * (1 - 1e-12)) * unit:.10g}"
