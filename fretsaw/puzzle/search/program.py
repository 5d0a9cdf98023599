"""The search's integer program: what it consists of, and a pick of one alternative per subblock.

    minimise sum score(i, j) x(i, j) + sum of the pairs whose two choices are both taken
    subject to fixed + sum cost(i, j) x(i, j) <= limit, one alternative per subblock, x binary

(Puzzle, arXiv 2411.19146). A span of layers whose FFNs may be fused is a decision more, of "apart"
and "fused", the latter allowed by what its layers take and by no other span of them. A limit's name
is a cost or a sum of costs ("prefill_ms+decode_ms").
`highs.py` solves it; every answer is valued again here, in plain arithmetic. No torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fretsaw.puzzle.search.table import (
    Alternative,
    FusedSpan,
    Layer,
    Pair,
    Part,
    Table,
    nearest,
)

RELATIVE_NOISE = 1e-9  # limits are compared with this much slack, for sums of floats

Choice = str | tuple[str, str]  # a block, or (attention, ffn)
Pick = tuple[int, ...]  # the chosen alternative of every decision


@dataclass(frozen=True)
class Solution:
    """One child: its total score, whether that is proved the least, its costs and its choices."""

    score: float
    proved: bool
    costs: dict[str, float]
    choices: tuple[Choice, ...]
    fused: tuple[str, ...] = ()  # spans of layers, such as "3-5"


class Decision(NamedTuple):
    """The alternatives of one subblock, of which exactly one is taken.

    Where a table has pairs within a layer, that layer is one decision of all its attentions with
    all its FFNs, each with its joint score.
    """

    layer: int
    names: tuple[tuple[str, ...], ...]
    scores: np.ndarray
    costs: dict[str, np.ndarray]

    def key(self) -> tuple:
        """Return what makes two decisions interchangeable."""
        figures = (self.scores, *self.costs.values())
        return (self.names, *(array.tobytes() for array in figures))


class Term(NamedTuple):
    """A pair across layers: twice a decision and those of its alternatives that have the choice."""

    first: tuple[int, frozenset[int]]
    second: tuple[int, frozenset[int]]
    score: float


class Link(NamedTuple):
    """A span's decision, where its "fused" is number 1, and what that needs of other decisions."""

    decision: int
    span: FusedSpan
    needs: tuple[tuple[int, frozenset[int]], ...]  # one of these alternatives of each decision


class Program(NamedTuple):
    """Decisions layer by layer, attention before FFN, then spans; pair terms; what all pay."""

    decisions: tuple[Decision, ...]
    terms: tuple[Term, ...]
    fixed: dict[str, float]
    cost_names: tuple[str, ...]
    links: tuple[Link, ...] = ()

    @classmethod
    def of(cls, table: Table, limits: Iterable[str] = ()) -> "Program":
        """Build from a table, with the costs and the sums of costs that `limits` names.

        Raises `ValueError` for a limit on an unknown cost.
        """
        wanted = dict.fromkeys([*table.cost_names, *limits])
        for name in wanted:
            for part in name.split("+"):
                if part not in table.cost_names:
                    hint = nearest(part, table.cost_names)
                    raise ValueError(f"search: limit on unknown cost {part!r}; {hint}")
        within_layer: dict[int, list[Pair]] = {}
        for pair in table.pairs:
            (i, _), (k, _) = pair.choices
            if i == k:
                within_layer.setdefault(i, []).append(pair)
        decisions = [
            decision
            for i, layer in enumerate(table.layers)
            for decision in _decisions(i, layer, wanted, within_layer.get(i, []))
        ]

        def having(part: Part) -> tuple[int, frozenset[int]]:
            for d, decision in enumerate(decisions):
                js = [j for j, names in enumerate(decision.names) if part[1] in names]
                if decision.layer == part[0] and js:
                    return d, frozenset(js)
            raise AssertionError(f"a checked table has {part}")

        terms = [
            Term(having(p.choices[0]), having(p.choices[1]), p.score)
            for p in table.pairs
            if p.choices[0][0] != p.choices[1][0]
        ]
        fixed = {n: sum(table.fixed.get(part, 0.0) for part in n.split("+")) for n in wanted}
        spanned = [_span_decision(span, wanted) for span in table.spans]
        links = tuple(
            _link(d, span, decisions) for d, span in enumerate(table.spans, len(decisions))
        )
        return cls((*decisions, *spanned), tuple(terms), fixed, table.cost_names, links)

    @property
    def num_layers(self) -> int:
        """How many layers a child has."""
        return max(decision.layer for decision in self.decisions) + 1

    def score(self, pick: Pick) -> float:
        """Return the sum of scores, pairs included."""
        alone = sum(decision.scores[j] for decision, j in zip(self.decisions, pick, strict=True))
        together = sum(
            term.score
            for term in self.terms
            if all(pick[d] in js for d, js in (term.first, term.second))
        )
        return float(alone + together)

    def cost(self, name: str, pick: Pick) -> float:
        """Return a cost, what is fixed included."""
        values = (decision.costs[name][j] for decision, j in zip(self.decisions, pick, strict=True))
        return float(self.fixed[name] + sum(values))

    def smallest(self, name: str) -> float:
        """Return the least this cost can be, whatever the other limits and the score.

        Without spans: with them a program must be solved (`highs.least_cost`).
        """
        assert not self.links, "what spans save depends on what their layers take"
        return self.cost(name, tuple(int(np.argmin(d.costs[name])) for d in self.decisions))

    def fits(self, pick: Pick, limits: Mapping[str, float]) -> bool:
        """Say whether every limit holds, and every span that is taken may be."""
        return self.is_possible(pick) and all(
            within(self.cost(name, pick), limit) for name, limit in limits.items()
        )

    def is_possible(self, pick: Pick) -> bool:
        """Say whether the spans that are taken are allowed, and no two have a layer in common."""
        taken = [link for link in self.links if pick[link.decision]]
        layers = [i for link in taken for i in link.span.layers]
        is_allowed = all(pick[d] in js for link in taken for d, js in link.needs)
        return is_allowed and len(layers) == len(set(layers))

    def pick(self, names: Sequence[tuple[str, ...]]) -> Pick:
        """Return the pick of the names chosen in each layer, which must all be in the table."""
        return tuple(
            next(j for j, own in enumerate(one.names) if set(own) <= set(names[one.layer]))
            for one in self.decisions
        )

    def solution(self, pick: Pick, *, proved: bool) -> Solution:
        """Return the child of a pick."""
        names: list[list[str]] = [[] for _ in range(self.num_layers)]
        num_choices = len(self.decisions) - len(self.links)
        for decision, j in zip(self.decisions[:num_choices], pick, strict=False):
            names[decision.layer] += decision.names[j]
        fused = tuple(str(link.span) for link in self.links if pick[link.decision])
        costs = {name: self.cost(name, pick) for name in self.cost_names}
        choices = tuple(n[0] if len(n) == 1 else (n[0], n[1]) for n in names)
        return Solution(self.score(pick), proved, costs, choices, fused)


def _decisions(i: int, layer: Layer, costs: Iterable[str], pairs: list[Pair]) -> list[Decision]:
    """Return a layer's decisions, attention before FFN; one decision where pairs join the two."""
    subblocks = [layer[subblock] for subblock in sorted(layer)]
    if not pairs:
        return [_decision(i, {(n,): [a] for n, a in one.items()}, costs, {}) for one in subblocks]
    attention, ffn = subblocks
    joint: dict[frozenset[str], float] = {}
    for pair in pairs:
        names = frozenset(name for _, name in pair.choices)
        joint[names] = joint.get(names, 0.0) + pair.score
    blocks = {(a, f): [attention[a], ffn[f]] for a in attention for f in ffn}
    return [_decision(i, blocks, costs, joint)]


def _decision(
    i: int,
    candidates: Mapping[tuple[str, ...], list[Alternative]],
    costs: Iterable[str],
    joint: Mapping[frozenset[str], float],
) -> Decision:
    scores = [
        sum(a.score for a in parts) + joint.get(frozenset(names), 0.0)
        for names, parts in candidates.items()
    ]
    by_cost = {
        cost: np.array(
            [sum(a.costs[n] for a in parts for n in names) for parts in candidates.values()], float
        )
        for cost, names in ((cost, cost.split("+")) for cost in costs)
    }
    return Decision(i, tuple(candidates), np.array(scores, float), by_cost)


def _span_decision(span: FusedSpan, costs: Iterable[str]) -> Decision:
    """Return a span as a decision: apart for nothing, or fused."""
    by_cost = {
        cost: np.array([0.0, -sum(span.saved.get(part, 0.0) for part in cost.split("+"))])
        for cost in costs
    }
    return Decision(span.first, ((), ()), np.array([0.0, span.score]), by_cost)


def _link(number: int, span: FusedSpan, decisions: Sequence[Decision]) -> Link:
    needs = [
        (d, frozenset(j for j, names in enumerate(one.names) if span.takes(one.layer, names)))
        for d, one in enumerate(decisions)
        if one.layer in span.layers
    ]
    return Link(number, span, tuple(needs))


def within(value: float, limit: float) -> bool:
    """Say whether a limit holds, to the rounding of a sum."""
    return value <= limit + RELATIVE_NOISE * max(abs(limit), abs(value))


def sum_of(values: Mapping[str, float], name: str) -> float:
    """Return a cost, or a sum of costs, by its name."""
    return sum(values[part] for part in name.split("+"))


def best_first(solutions: Sequence[Solution]) -> list[Solution]:
    """Sort by score."""
    return sorted(solutions, key=lambda solution: solution.score)
