"""The search table as JSON: read, checked and written. Standard library only."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fretsaw.data.text_files import read_chunks
from fretsaw.puzzle.search.table import Alternative, FusedSpan, Layer, Pair, Part, Table
from fretsaw.stage.json_text import parse_json
from fretsaw.stage.whole import write_json


def read_table(path: Path) -> Table:
    """Read a search table. Raises `ValueError` naming the layer and the alternative at fault."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise ValueError(
            f"{path}: {what}; give a table of alternatives as JSON, as docs/search.md shows it"
        )
    text = "".join(read_chunks(path))
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; write the search table again") from None
    return table_from_json(value)


def write_table(path: Path, table: Table) -> None:
    """Write a table as JSON, whole or not at all."""
    write_json(path, table_to_json(table))


def table_to_json(table: Table) -> dict[str, Any]:
    """Return the published form; it has "pairs" and "spans" only where there are any."""
    spans = [
        {"layers": [one.first, one.last], "score": one.score, **one.saved} for one in table.spans
    ]
    pairs = [pair_to_json(pair) for pair in table.pairs]
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
        **({"pairs": pairs} if pairs else {}),
        **({"spans": spans} if spans else {}),
    }


def pair_to_json(pair: Pair) -> dict[str, Any]:
    """Return the published form of a pair."""
    return {"choices": [list(part) for part in pair.choices], "score": pair.score}


def table_from_json(value: Any) -> Table:
    """Check and build a table from its published form."""
    if not isinstance(value, dict) or not isinstance(value.get("layers"), list):
        raise ValueError('search table: no list "layers"; write {"fixed": {...}, "layers": [...]}')
    unknown = value.keys() - {"units", "fixed", "layers", "pairs", "spans"}
    if unknown:
        raise ValueError(
            f"search table: unknown key {min(unknown)!r}; it has units, fixed, layers, pairs and "
            "spans"
        )
    fixed = _mapping(value.get("fixed", {}), "fixed")
    layers = [dict(_mapping(layer, f"layer {i}")) for i, layer in enumerate(value["layers"])]
    joint = [layer.pop("blocks", {}) for layer in layers]
    built = tuple(_layer(layer, i) for i, layer in enumerate(layers))
    pairs = pairs_from_json(value.get("pairs", []))
    for i, blocks in enumerate(joint):
        figures = _mapping(blocks, f"layer {i}, blocks").items()
        scores = {name: _score(value, f"layer {i}, blocks {name!r}") for name, value in figures}
        pairs += joint_pairs(i, built[i], scores)
    return Table(
        layers=built,
        pairs=tuple(pairs),
        spans=_spans(value.get("spans", [])),
        fixed={name: _number(cost, f"fixed {name!r}") for name, cost in fixed.items()},
        units=_mapping(value.get("units", {}), "units"),
    )


def pairs_from_json(value: Any) -> list[Pair]:
    """Read [{"choices": [[layer, name], [layer, name]], "score": ...}, ...]."""
    if not isinstance(value, list):
        raise ValueError(f"search table: pairs is {value!r:.40}; it must be a list")
    pairs = []
    for entry in value:
        choices = _mapping(entry, "a pair").get("choices")
        parts = [_part(one) for one in choices] if isinstance(choices, list | tuple) else []
        if len(parts) != 2 or None in parts:
            raise ValueError(
                f"search table: a pair's choices are {choices!r:.60}; write "
                '[[layer, "name"], [layer, "name"]]'
            )
        first, second = (part for part in parts if part is not None)
        where = f"the pair of {first[1]!r} and {second[1]!r}"
        pairs.append(Pair((first, second), _score(entry, where)))
    return pairs


def _spans(value: Any) -> tuple[FusedSpan, ...]:
    if not isinstance(value, list):
        raise ValueError(f"search table: spans is {value!r:.40}; it must be a list")
    spans = []
    for entry in value:
        layers = _mapping(entry, "a span").get("layers")
        if not isinstance(layers, list) or [type(i) for i in layers] != [int, int]:
            raise ValueError(
                f"search table: a span's layers are {layers!r:.60}; write [first, last]"
            )
        where = f"the span {layers[0]}-{layers[1]}"
        figures = {name: x for name, x in entry.items() if name not in ("layers", "score")}
        saved = {name: _number(x, f"{where}, {name}") for name, x in figures.items()}
        spans.append(FusedSpan(layers[0], layers[1], _score(entry, where), saved))
    return tuple(spans)


def _part(value: Any) -> Part | None:
    if isinstance(value, list | tuple) and list(map(type, value)) == [int, str]:
        return value[0], value[1]
    return None


def joint_pairs(i: int, layer: Layer, scores: Mapping[str, float]) -> list[Pair]:
    """Return what "gqa2+ffn192" and such score together beyond the sum of their two scores."""
    pairs = []
    for name, score in scores.items():
        attention, _, ffn = name.partition("+")
        if attention not in layer.get("attention", {}) or ffn not in layer.get("ffn", {}):
            raise ValueError(
                f"search table: layer {i}, blocks {name!r} is not its attention + FFN; it has "
                f"{', '.join(layer.get('attention', {}))} and {', '.join(layer.get('ffn', {}))}"
            )
        apart = layer["attention"][attention].score + layer["ffn"][ffn].score
        pairs.append(Pair(((i, attention), (i, ffn)), score - apart))
    return pairs


def _score(figures: Any, where: str) -> float:
    if "score" not in _mapping(figures, where):
        raise ValueError(f"search table: {where} has no score; give one number, less is better")
    return _number(figures["score"], f"{where}, score")


def _layer(value: Any, i: int) -> Layer:
    layer: dict[str, dict[str, Alternative]] = {}
    for subblock, alternatives in _mapping(value, f"layer {i}").items():
        layer[subblock] = {}
        for name, figures in _mapping(alternatives, f"layer {i}, {subblock}").items():
            where = f"layer {i}, {subblock} {name!r}"
            score = _score(figures, where)
            costs = {c: _number(x, f"{where}, {c}") for c, x in figures.items() if c != "score"}
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
