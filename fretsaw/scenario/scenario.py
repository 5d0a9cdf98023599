"""What a model is to be served for: `Scenario`.

A scenario is "batch=64,in=1024,out=1024,dtype=bf16,device=h100"; where several are meant, numbers
are joined by slashes, batch=1/8/64. Standard library only.
"""

import difflib
import itertools
import re
from dataclasses import dataclass

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

    def agrees(self, text: str) -> bool:
        """Say whether every key that `text` gives ("batch=64,in=1024") is as in this scenario."""
        given = Scenario.parse(text)
        keys = [part.partition("=")[0].strip() for part in text.split(",") if part.strip()]
        return all(getattr(given, _KEYS[key]) == getattr(self, _KEYS[key]) for key in keys)

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
