"""Settings from what people and machines write: JSON, `--set stage.key=value`, dataclasses."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def check_range(settings: Any, least: float, *names: str, most: float = math.inf) -> None:
    """Raise ValueError for the first of these numbers that is not in the range, or not finite."""
    rule = f"give at least {least}" if most == math.inf else f"lies in {least} to {most}"
    for name in names:
        value = getattr(settings, name)
        if not (least <= value <= most and value < math.inf):
            raise ValueError(f"{name}: {value!r}; {rule}")


def check_positive(settings: Any, *names: str) -> None:
    """Raise ValueError for the first of these numbers that is not above 0, or not finite."""
    for name in names:
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: {value!r}; must be positive and finite")


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a settings dataclass from plain values.

    Raises `ValueError` for an unknown key, naming the nearest, and for a value of the wrong type.
    """
    where = where or cls.__name__
    hints = typing.get_type_hints(cls)
    built = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{where}: unknown key {key!r}; {hint}known: {', '.join(hints)}")
        built[key] = _convert(hints[key], value, f"{where}.{key}")
    return cls(**built)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: {value!r}; it takes keys of its own, not one value")
        return build(hint, value, where)
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{where}: {value!r}; choose one of {', '.join(map(repr, args))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(args[0], value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: {value!r}; it takes a list")
        return tuple(_convert(args[0], item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    assert isinstance(hint, type), f"{where}: settings may not be {hint}"
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: {value!r} is {type(value).__name__}; it takes {hint.__name__}")
    return value


def override(settings: T, path: str, text: str) -> T:
    """Return the settings with one value replaced, `path` being dotted: `train.learning_rate`."""
    values = dataclasses.asdict(settings)  # type: ignore[call-overload]
    *parents, key = path.split(".")
    inner = values
    for parent in parents:
        inner = inner.get(parent)
        if not isinstance(inner, dict):
            raise ValueError(f"--set {path}={text}: {type(settings).__name__} has no {parent!r}")
    try:
        inner[key] = json.loads(text)
    except json.JSONDecodeError:
        inner[key] = text
    return build(type(settings), values)
