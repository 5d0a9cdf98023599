"""The search table: what every alternative of every layer scores and costs.

    {"units": {...}, "fixed": {"runtime_ms": 1.5, "memory_mib": 800},
     "layers": [{"attention": {"gqa4": {"score": 0, "runtime_ms": 2, "memory_mib": 9}, ...},
                 "ffn": {...}}]}

or {"block": {...}} for whole blocks. Scores are minimised; costs are any named numbers that add up
over layers; `fixed` is what every child pays. "pairs" say what two choices score beyond their sum,
in two layers or within one. "spans" are layers whose FFNs may be fused: {"layers": [3, 5], "score":
0.01, "runtime_ms": 0.4} adds to the score and saves of the costs. Standard library only.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fretsaw.stage.artifact import write_json

FORMS = (("attention", "ffn"), ("block",))
_FFN = re.compile(r"ffn\d+")  # one that can be fused


@dataclass(frozen=True)
class Alternative:
    """A candidate for a subblock: its score (less is better) and what it costs, by name."""

    score: float
    costs: Mapping[str, float]


Layer = Mapping[str, Mapping[str, Alternative]]  # subblock -> alternative's name -> alternative
Place = tuple[int, str]  # a layer, and the name of one of its alternatives


@dataclass(frozen=True)
class Pair:
    """What two choices, both made, add to the sum of scores; below 0 where they go together."""

    choices: tuple[Place, Place]
    score: float


@dataclass(frozen=True)
class Span:
    """Layers `first` to `last` whose FFNs may become one: what that adds, and what it saves.

    It may be taken where all of them have an FFN and all but the first have no attention.
    """

    first: int
    last: int
    score: float
    saved: Mapping[str, float]  # of the costs, by name

    def takes(self, layer: int, names: Iterable[str]) -> bool:
        """Say whether these alternatives of one of its layers leave it possible."""
        parts = [part for name in names for part in name.split("+")]
        ffns = [part for part in parts if part.startswith("ffn")]
        attentions = [part for part in parts if not part.startswith("ffn")]
        is_apart = layer == self.first or all(part == "attn_none" for part in attentions)
        return is_apart and all(_FFN.fullmatch(part) for part in ffns)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Table:
    """Alternatives by layer and subblock, and what every child pays in any case."""

    layers: tuple[Layer, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    spans: tuple[Span, ...] = ()

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
        for pair in self.pairs:
            first, second = (self.subblock_of(place) for place in pair.choices)
            if first == second:
                raise ValueError(
                    f"search table: the pair {_spelled(pair)} names one subblock twice, which "
                    "takes one alternative; name two subblocks"
                )
        for span in self.spans:
            if not 0 <= span.first < span.last < len(self.layers):
                raise ValueError(
                    f"search table: the span {span} is none of layers 0 to {len(self.layers) - 1}; "
                    "a span is two layers at least, the first before the last"
                )
            for name in span.saved:
                if name not in names:
                    raise ValueError(
                        f"search table: the span {span} saves {name!r}, which no alternative "
                        f"costs; {nearest(name, names)}"
                    )

    def subblock_of(self, place: Place) -> tuple[int, str]:
        """Return the layer and the subblock that a place belongs to."""
        i, name = place
        if not 0 <= i < len(self.layers):
            raise ValueError(
                f"search table: a pair names layer {i}, but there are {len(self.layers)}; "
                "count from 0"
            )
        found = [subblock for subblock, names in self.layers[i].items() if name in names]
        if len(found) != 1:
            known = ", ".join(name for names in self.layers[i].values() for name in names)
            wrong = "has no" if not found else "has twice, as attention and as FFN, the"
            raise ValueError(
                f"search table: a pair names {name!r}, but layer {i} {wrong} alternative of that "
                f"name; it has {known}"
            )
        return i, found[0]

    @property
    def cost_names(self) -> tuple[str, ...]:
        """The costs, as the first alternative names them; all alternatives name the same."""
        for layer in self.layers:
            for alternatives in layer.values():
                for alternative in alternatives.values():
                    return tuple(alternative.costs)
        return ()


def _spelled(pair: Pair) -> str:
    return " with ".join(f"{name} of layer {i}" for i, name in pair.choices)


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
        what = "a folder" if path.is_dir() else "no such file"
        raise ValueError(
            f"{path}: {what}; give a table of alternatives as JSON, as docs/search.md shows it"
        )
    try:
        value = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); write the search table again") from error
    return table_from_json(value)


def write_table(path: Path, table: Table) -> None:
    """Write a table as JSON, whole or not at all."""
    write_json(path, table_to_json(table))


def table_to_json(table: Table) -> dict[str, Any]:
    """Return the published form; it has "pairs" and "spans" only where there are any."""
    spans = [
        {"layers": [one.first, one.last], "score": one.score, **one.saved} for one in table.spans
    ]
    pairs = [{"choices": [list(c) for c in p.choices], "score": p.score} for p in table.pairs]
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
        places = [_place(one) for one in choices] if isinstance(choices, list | tuple) else []
        if len(places) != 2 or None in places:
            raise ValueError(
                f"search table: a pair's choices are {choices!r:.60}; write "
                '[[layer, "name"], [layer, "name"]]'
            )
        first, second = (place for place in places if place is not None)
        where = f"the pair of {first[1]!r} and {second[1]!r}"
        pairs.append(Pair((first, second), _score(entry, where)))
    return pairs


def _spans(value: Any) -> tuple[Span, ...]:
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
        spans.append(Span(layers[0], layers[1], _score(entry, where), saved))
    return tuple(spans)


def _place(value: Any) -> Place | None:
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
