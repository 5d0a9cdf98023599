"""What a child must reach: `Target`, as people write it.

A target is a list such as "1.5x decode, 60% memory"; a speed-up is tokens/s at the scenario, so
every speed is printed next to it. Where several scenarios are measured, "1.5x decode @ batch=64"
names the one it is meant for. Standard library only.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fretsaw.scenario.scenario import MIB, Scenario

Quantity = Literal["decode", "prefill", "throughput", "latency", "memory", "params"]
TOTAL_MS = "prefill_ms+decode_ms"  # a sum of costs, as the search takes it
_COST_OF: dict[str, str] = {
    "decode": "decode_ms",
    "prefill": "prefill_ms",
    "throughput": TOTAL_MS,
    "latency": TOTAL_MS,
    "memory": "memory_mib",
    "params": "params",
}
_MIB_OF_UNIT = {"GB": 1e9 / MIB, "MB": 1e6 / MIB, "GiB": 1024.0, "MiB": 1.0}
_SPEEDS = ("decode", "prefill", "throughput")
_SHARES = ("memory", "params")
_GRAMMAR = (
    "write '1.5x decode', '2x prefill', '1.3x throughput', '800ms latency', '60% memory', "
    "'0.7x params', '24GB' or '24GiB', several joined by commas; '@ batch=64 in=1024' after one "
    "names the measured scenario it is meant for"
)
_FORM = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(x|%|ms|[GM]i?B)(?:\s+([a-z]+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """One thing a child must reach: a speed-up (x), a share of the parent, milliseconds, or MiB."""

    quantity: Quantity
    amount: float
    unit: Literal["speedup", "share", "ms", "mib"]
    text: str  # as the user wrote it
    at: str = ""  # the scenario it is meant for, as far as it is given: "batch=64,in=1024"

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read one target. Raises `ValueError` with the grammar."""
        text, sign, at = text.partition("@")
        if sign:
            at = ",".join(at.split())
            Scenario.parse(at)
            if not at:
                raise ValueError(f"target: {text.strip()!r} @ names no scenario; {_GRAMMAR}")
            return replace(cls.parse(text), at=at)
        form = _FORM.fullmatch(text.strip())
        if form is None:
            raise ValueError(f"target: {text.strip()!r} is not understood; {_GRAMMAR}")
        amount, unit, quantity = float(form[1]), form[2].lower(), (form[3] or "").lower()
        match unit:
            case "x" if quantity in _SPEEDS:
                if amount <= 1:
                    raise ValueError(
                        f"target: {text.strip()!r} asks for no speed-up; it must be above 1x; "
                        f"{_GRAMMAR}"
                    )
                return cls(quantity, amount, "speedup", text.strip())  # type: ignore[arg-type]
            case "x" | "%" if quantity in _SHARES:
                share = amount / 100 if unit == "%" else amount
                if not 0 < share < 1:
                    raise ValueError(
                        f"target: {text.strip()!r} must lie between nothing and all of the "
                        f"parent's {quantity}; {_GRAMMAR}"
                    )
                return cls(quantity, share, "share", text.strip())  # type: ignore[arg-type]
            case "ms" if quantity == "latency" and amount > 0:
                return cls("latency", amount, "ms", text.strip())
            case "gb" | "mb" | "gib" | "mib" if quantity in ("", "memory") and amount > 0:
                spelled = next(u for u in _MIB_OF_UNIT if u.lower() == unit)
                return cls("memory", amount * _MIB_OF_UNIT[spelled], "mib", text.strip())
        raise ValueError(f"target: {text.strip()!r} is not understood; {_GRAMMAR}")

    @property
    def cost(self) -> str:
        """The cost it bounds: decode_ms, prefill_ms, their sum, memory_mib or params."""
        return _COST_OF[self.quantity]

    def bound(self, parent_cost: float) -> float:
        """Return the upper bound on `cost`, in its unit, for a parent that costs `parent_cost`."""
        match self.unit:
            case "speedup":
                return parent_cost / self.amount
            case "share":
                return parent_cost * self.amount
            case _:
                return self.amount

    def reachable(self, cost: float, parent_cost: float) -> str:
        """Say in the target's own words what `cost` comes to, rounded so that it can be met."""
        match self.unit:
            case "speedup":
                speedup = math.floor(100 * parent_cost / cost + 1e-9) / 100
                return f"{speedup:g}x {self.quantity}"
            case "share":
                share = math.ceil(1000 * cost / parent_cost - 1e-9) / 10
                return f"{share:g}% {self.quantity}"
            case "ms":
                return f"{math.ceil(cost - 1e-9)}ms {self.quantity}"
            case _:
                form = _FORM.fullmatch(self.text)
                assert form is not None, f"a target was parsed from {self.text!r}"
                unit = next(u for u in _MIB_OF_UNIT if u.lower() == form[2].lower())
                return f"{math.ceil(100 * cost / _MIB_OF_UNIT[unit] - 1e-9) / 100:g}{unit}"

    def __str__(self) -> str:
        return f"{self.text} @ {self.at.replace(',', ' ')}" if self.at else self.text


def parse_targets(text: str) -> tuple[Target, ...]:
    """Read "1.5x decode, 24GB". Raises `ValueError` with the grammar."""
    return tuple(Target.parse(part) for part in text.split(","))


def limits(targets: Iterable[Target], parent_costs: Mapping[str, float]) -> dict[str, float]:
    """Return upper bounds by cost name, the tightest where several targets bound one cost.

    A decode speed-up of s means tokens/s at least s times the parent's, so decode_ms <= parent / s.
    A bound on throughput or latency is on the sum `prefill_ms+decode_ms`, which the search reads.
    Raises `ValueError` where the parent's cost is not known.
    """
    bounds: dict[str, float] = {}
    for target in targets:
        if target.at:
            raise ValueError(
                f"target: {target} names a scenario, which only a search over measured costs "
                f"knows; give {target.text} alone"
            )
        missing = [name for name in target.cost.split("+") if name not in parent_costs]
        if missing:
            raise ValueError(
                f"target: {target} needs the parent's {missing[0]}, but only "
                f"{', '.join(parent_costs) or 'nothing'} is known; measure it or drop the target"
            )
        bound = target.bound(sum(parent_costs[name] for name in target.cost.split("+")))
        bounds[target.cost] = min(bound, bounds.get(target.cost, bound))
    return bounds
