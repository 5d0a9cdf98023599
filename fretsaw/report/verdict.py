"""Whether a target was reached, and by which figure.

Memory and parameters are computed from the shapes; times are measured, and have noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fretsaw.scenario.target import Target


@dataclass(frozen=True)
class Verdict:
    """Whether one target was reached, and by which figure."""

    target: Target
    value: float  # in the target's own unit
    how: str  # "measured", or "computed" from the shapes
    noise: float  # relative
    status: str  # "reached" or "missed", "within noise" added where the noise could turn it


def decide(
    target: Target,
    speed: Mapping[str, Any],
    parent_costs: Mapping[str, float],
    child_costs: Mapping[str, float],
) -> Verdict:
    """Return the verdict on a target, by a bench's `speed.json` or else by the summed costs."""
    if target.quantity in ("memory", "params"):
        return _decide_size(target, parent_costs[target.cost], child_costs[target.cost])
    return _decide_time(target, [speed[c.removesuffix("_ms")] for c in target.cost.split("+")])


def _decide_size(target: Target, parent: float, child: float) -> Verdict:
    value = child if target.unit == "mib" else child / parent
    status = "reached" if value <= target.amount else "missed"
    return Verdict(target, value, "computed", 0.0, status)


def _decide_time(target: Target, phases: list[dict[str, Any]]) -> Verdict:
    """Decide by one phase's figures, or by the sum of several phases' medians."""
    noise = max(phase["noise_floor"] for phase in phases)
    parent, child = (sum(phase[f"{who}_ms"] for phase in phases) for who in ("parent", "child"))
    if target.unit == "ms":
        value, lead = child, target.amount / child - 1
    else:
        # Of one phase the median of the ratios, not the ratio of the medians.
        value = phases[0]["speedup"] if len(phases) == 1 else parent / child
        lead = value / target.amount - 1
    status = "reached" if lead >= 0 else "missed"
    doubt = " within noise" if abs(lead) <= noise else ""
    return Verdict(target, value, "measured", noise, status + doubt)
