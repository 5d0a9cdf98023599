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
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

FORMS = (("attention", "ffn"), ("block",))
_FFN = re.compile(r"ffn\d+")  # one that can be fused


@dataclass(frozen=True)
class Alternative:
    """A candidate for a subblock: its score (less is better) and what it costs, by name."""

    score: float
    costs: Mapping[str, float]


Layer = Mapping[str, Mapping[str, Alternative]]  # subblock -> alternative's name -> alternative
Part = tuple[int, str]  # of a child: a layer, and the name of one of its alternatives


@dataclass(frozen=True)
class Pair:
    """What two choices, both made, add to the sum of scores; below 0 where they go together."""

    choices: tuple[Part, Part]
    score: float


@dataclass(frozen=True)
class FusedSpan:
    """Layers `first` to `last` whose FFNs may become one: what that adds, and what it saves.

    It may be taken where all of them have an FFN and all but the first have no attention.
    """

    first: int
    last: int
    score: float
    saved: Mapping[str, float]  # of the costs, by name

    @property
    def layers(self) -> range:
        """The layers, first to last."""
        return range(self.first, self.last + 1)

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
    spans: tuple[FusedSpan, ...] = ()

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
            first, second = (self.subblock_of(part) for part in pair.choices)
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

    def subblock_of(self, part: Part) -> tuple[int, str]:
        """Return the layer and the subblock that a part of a child belongs to."""
        i, name = part
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
