"""What a model is to be served for, and what a child must reach: `Scenario` and `Target`.

A scenario is "batch=64,in=1024,out=1024,dtype=bf16,device=h100"; where several are meant, numbers
are joined by slashes, batch=1/8/64. A target is a list such as "1.5x decode, 60% memory"; a
speed-up is tokens/s at the scenario, so every speed is printed next to it. Standard library only.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from fretsaw.model.size import BYTES_PER_ELEMENT

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One way of serving: `batch` requests at once, each of so many tokens in and out."""

    batch: int = 64
    prompt_tokens: int = 1024
    output_tokens: int = 1024
    dtype: str = "bf16"
    device: str = "h100"  # a label: costs may be measured on a device hardware.py does not list

    def __post_init__(self) -> None:
        for key, field in _KEYS.items():
            value = getattr(self, field)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"scenario: {key}={value} must be at least 1")
        if self.dtype not in BYTES_PER_ELEMENT:
            raise ValueError(
                f"scenario: dtype={self.dtype} is unknown; use {', '.join(BYTES_PER_ELEMENT)}"
            )
        if not re.fullmatch(r"[A-Za-z0-9_.:-]+", self.device):
            raise ValueError(f"scenario: device={self.device!r} must be one word, such as h100x8")

    @classmethod
    def parse(cls, text: str) -> "Scenario":
        """Read "batch=64,in=1024,..."; keys left out keep their defaults.

        Raises `ValueError` for an unknown key (naming the nearest), one given twice, or no number.
        """
        fields: dict[str, int | str] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if key not in _KEYS:
                near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"scenario: unknown key {key!r}; {hint}known: {', '.join(_KEYS)}")
            if not equals or not value:
                raise ValueError(f"scenario: {part!r} has no value; write {key}=VALUE")
            if _KEYS[key] in fields:
                raise ValueError(f"scenario: {key} is given twice; keep one")
            is_number = key in ("batch", "in", "out")
            if is_number and not re.fullmatch(r"\d+", value):
                raise ValueError(f"scenario: {key}={value} is no whole number; write {key}=64")
            fields[_KEYS[key]] = int(value) if is_number else value
        return cls(**fields)  # type: ignore[arg-type]

    def check_context(self, longest: int) -> None:
        """Raise where prompt and output do not fit into a model's context of `longest` tokens."""
        row = self.prompt_tokens + self.output_tokens
        if row > longest:
            raise ValueError(
                f"scenario: in={self.prompt_tokens} and out={self.output_tokens} are {row} tokens "
                f"a row, but the model's context is {longest}; lower in or out"
            )

    def __str__(self) -> str:
        return ",".join(f"{key}={getattr(self, field)}" for key, field in _KEYS.items())


def parse_scenarios(text: str) -> tuple[Scenario, ...]:
    """Read scenarios that differ in numbers: "batch=1/8/64,in=64/1024" is every combination.

    They come in the order written, the last key varying fastest. Raises as `Scenario.parse` does.
    """
    choices = [[""]]
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        values = value.split("/") if key.strip() in ("batch", "in", "out") else [value]
        choices.append([f"{key}{equals}{one}" for one in values])
    combined = (Scenario.parse(",".join(parts)) for parts in itertools.product(*choices))
    return tuple(dict.fromkeys(combined))


_KEYS = {
    "batch": "batch",
    "in": "prompt_tokens",
    "out": "output_tokens",
    "dtype": "dtype",
    "device": "device",
}

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
    "'0.7x params', '24GB' or '24GiB', several joined by commas"
)
_FORM = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(x|%|ms|[GM]i?B)(?:\s+([a-z]+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """One thing a child must reach: a speed-up (x), a share of the parent, milliseconds, or MiB."""

    quantity: Quantity
    amount: float
    unit: Literal["speedup", "share", "ms", "mib"]
    text: str  # as the user wrote it

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read one target. Raises `ValueError` with the grammar."""
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

    def __str__(self) -> str:
        return self.text


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
        missing = [name for name in target.cost.split("+") if name not in parent_costs]
        if missing:
            raise ValueError(
                f"target: {target} needs the parent's {missing[0]}, but only "
                f"{', '.join(parent_costs) or 'nothing'} is known; measure it or drop the target"
            )
        bound = target.bound(sum(parent_costs[name] for name in target.cost.split("+")))
        bounds[target.cost] = min(bound, bounds.get(target.cost, bound))
    return bounds
