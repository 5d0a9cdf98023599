"""The search table: what every alternative of every layer scores and costs.

    {"units": {...}, "fixed": {"runtime_ms": 1.5, "memory_mib": 800},
     "layers": [{"attention": {"gqa4": {"score": 0, "runtime_ms": 2, "memory_mib": 9}, ...},
                 "ffn": {...}}]}

or {"block": {...}} for whole blocks. Scores are minimised; costs are any named numbers that add up
over layers; `fixed` is what every child pays. Standard library only.
"""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fretsaw.artifact import write_json

FORMS = (("attention", "ffn"), ("block",))


@dataclass(frozen=True)
class Alternative:
    """A candidate for a subblock: its score (less is better) and what it costs, by name."""

    score: float
    costs: Mapping[str, float]


Layer = Mapping[str, Mapping[str, Alternative]]  # subblock -> alternative's name -> alternative


@dataclass(frozen=True)
class Table:
    """Alternatives by layer and subblock, and what every child pays in any case."""

    layers: tuple[Layer, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("search table: no layers; give at least one")
        names = self.cost_names
        for i, layer in enumerate(self.layers):
            if tuple(sorted(layer)) not in FORMS:
                raise ValueError(
                    f"search table: layer {i} has {', '.join(layer) or 'nothing'}; a layer is "
                    'either {"attention": ..., "ffn": ...} or {"block": ...}'
                )
            for subblock, alternatives in layer.items():
                if not alternatives:
                    raise ValueError(
                        f"search table: layer {i} has no alternative for its {subblock}; give at "
                        "least one, the parent's own"
                    )
                for name, alternative in alternatives.items():
                    _check_names(f"layer {i}, {subblock} {name!r}", alternative.costs, names)
        for name in self.fixed:
            if name not in names:
                raise ValueError(
                    f"search table: fixed names {name!r}, which no alternative costs; "
                    f"{nearest(name, names)}"
                )

    @property
    def cost_names(self) -> tuple[str, ...]:
        """The costs, as the first alternative names them; all alternatives name the same."""
        for layer in self.layers:
            for alternatives in layer.values():
                for alternative in alternatives.values():
                    return tuple(alternative.costs)
        return ()


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known cost a misspelt one may have meant."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known costs: {', '.join(known) or 'none'}"


def _check_names(where: str, costs: Mapping[str, float], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in costs]
    extra = [name for name in costs if name not in names]
    if missing or extra:
        wrong = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which the first lacks"
        raise ValueError(
            f"search table: {where} {wrong}; every alternative must name the same costs "
            f"({', '.join(names) or 'none'})"
        )


# --- JSON -----------------------------------------------------------------------------------------


def read_table(path: Path) -> Table:
    """Read a search table. Raises `ValueError` naming the layer and the alternative at fault."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a search table is JSON written by rank and cost")
    try:
        value = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); write the search table again") from error
    return table_from_json(value)


def write_table(path: Path, table: Table) -> None:
    """Write a table as JSON, whole or not at all."""
    write_json(path, table_to_json(table))


def table_to_json(table: Table) -> dict[str, Any]:
    """Return the published form."""
    return {
        "units": dict(table.units),
        "fixed": dict(table.fixed),
        "layers": [
            {
                subblock: {
                    name: {"score": alternative.score, **alternative.costs}
                    for name, alternative in alternatives.items()
                }
                for subblock, alternatives in layer.items()
            }
            for layer in table.layers
        ],
    }


def table_from_json(value: Any) -> Table:
    """Check and build a table from its published form."""
    if not isinstance(value, dict) or not isinstance(value.get("layers"), list):
        raise ValueError('search table: no list "layers"; write {"fixed": {...}, "layers": [...]}')
    if value.get("spans"):
        raise ValueError(
            "search table: spans (fused runs of layers) are not supported yet; remove them and "
            "fuse after the search"
        )
    unknown = value.keys() - {"units", "fixed", "layers", "spans"}
    if unknown:
        raise ValueError(
            f"search table: unknown key {min(unknown)!r}; it has units, fixed and layers"
        )
    fixed = _mapping(value.get("fixed", {}), "fixed")
    return Table(
        layers=tuple(_layer(layer, i) for i, layer in enumerate(value["layers"])),
        fixed={name: _number(cost, f"fixed {name!r}") for name, cost in fixed.items()},
        units=_mapping(value.get("units", {}), "units"),
    )


def _layer(value: Any, i: int) -> Layer:
    layer: dict[str, dict[str, Alternative]] = {}
    for subblock, alternatives in _mapping(value, f"layer {i}").items():
        layer[subblock] = {}
        for name, figures in _mapping(alternatives, f"layer {i}, {subblock}").items():
            where = f"layer {i}, {subblock} {name!r}"
            costs = dict(_mapping(figures, where))
            if "score" not in costs:
                raise ValueError(
                    f"search table: {where} has no score; give one number, less is better"
                )
            score = _number(costs.pop("score"), f"{where}, score")
            costs = {cost: _number(x, f"{where}, {cost}") for cost, x in costs.items()}
            layer[subblock][name] = Alternative(score, costs)
    return layer


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"search table: {where} is {value!r:.40}; it must be a JSON object")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"search table: {where} is {value!r}; it must be a finite number")
    return value
