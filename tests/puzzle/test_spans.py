"""Spans of layers that may be fused, inside the search: against brute force."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tables import children, random_table

from fretsaw.cli import main
from fretsaw.puzzle.search import (
    Infeasible,
    pareto,
    search_by,
    search_table,
    smallest_cost,
)
from fretsaw.puzzle.table import Pair, Span, Table, read_table, table_from_json, write_table


def with_spans(seed: int, num_layers: int, *, block: bool = False) -> Table:
    """A random table with a span for every two to all of its layers; some scores are below 0."""
    table = random_table(seed, num_layers, block=block)
    rng = random.Random(seed + 1000)
    spans = tuple(
        Span(i, j, rng.uniform(-0.1, 0.5), {n: rng.uniform(0, 1.5) for n in table.cost_names})
        for i in range(num_layers)
        for j in range(i + 1, num_layers)
    )
    return replace(table, spans=spans)


def is_allowed(span: Span, choices: tuple) -> bool:
    for i in range(span.first, span.last + 1):
        names = choices[i].split("+") if isinstance(choices[i], str) else choices[i]
        attention, ffn = names
        if ffn == "ffn_none" or (i > span.first and attention != "attn_none"):
            return False
    return True


def everything(table: Table) -> list[tuple[float, dict[str, float], tuple, tuple[str, ...]]]:
    """Every child with every set of disjoint spans that it allows."""
    found = []
    for score, costs, choices in children(replace(table, spans=())):
        possible = [span for span in table.spans if is_allowed(span, choices)]
        for count in range(len(possible) + 1):
            for taken in itertools.combinations(possible, count):
                layers = [i for s in taken for i in range(s.first, s.last + 1)]
                if len(layers) > len(set(layers)):
                    continue
                less = {n: v - sum(s.saved[n] for s in taken) for n, v in costs.items()}
                fused = tuple(map(str, taken))
                found.append((score + sum(s.score for s in taken), less, choices, fused))
    return found


@pytest.mark.parametrize("seed", range(24))
def test_the_optimum_is_brute_forces(seed: int) -> None:
    table = with_spans(seed, 3, block=seed % 2 == 1)
    every = everything(table)
    _, costs, _, _ = random.Random(seed).choice(every)
    limits = {name: costs[name] + 1e-9 for name in list(costs)[: 1 + seed % 3]}
    (solution,) = search_table(table, limits)
    fitting = [c for c in every if all(c[1][n] <= limit for n, limit in limits.items())]
    best = min(fitting, key=lambda child: child[0])
    assert solution.proved
    assert solution.score == pytest.approx(best[0], abs=1e-9)
    (own,) = [c for c in every if (c[2], c[3]) == (solution.choices, solution.fused)]
    assert solution.costs == pytest.approx(own[1])
    assert all(solution.costs[n] <= limit * (1 + 1e-9) for n, limit in limits.items())


@pytest.mark.parametrize("seed", range(6))
def test_the_least_cost_counts_what_fusing_saves(seed: int) -> None:
    table = with_spans(seed, 3)
    least = min(costs["runtime_ms"] for _, costs, _, _ in everything(table))
    assert smallest_cost(table, "runtime_ms") == pytest.approx(least)
    with pytest.raises(Infeasible) as raised:
        search_table(table, {"runtime_ms": least - 0.01})
    assert raised.value.reach is not None
    assert raised.value.reach.alone["runtime_ms"] == pytest.approx(least)
    assert raised.value.reach.nearest == pytest.approx({"runtime_ms": least})
    front = pareto(table, "runtime_ms", 4)
    assert front[0].costs["runtime_ms"] == pytest.approx(least)


def test_a_pool_differs_in_choices_not_in_what_is_fused_alone() -> None:
    table = with_spans(3, 3)
    pool = search_table(table, {}, num_solutions=6)
    assert len({solution.choices for solution in pool}) == len(pool) == 6


def test_other_searches_fuse_nothing() -> None:
    table = with_spans(5, 3)
    limits = {"runtime_ms": sum(table.fixed.values()) + 100}
    for method in ("greedy", "max_params", "random"):
        assert all(not one.fused for one in search_by(method, table, limits))


def test_pairs_within_a_layer_and_spans_go_together() -> None:
    table = with_spans(4, 3)
    pairs = tuple(Pair(((i, "attn_none"), (i, "ffn64")), 0.3) for i in range(3))
    both = replace(table, pairs=pairs)
    (solution,) = search_table(both, {})
    children = [
        (score + 0.3 * sum(c == ("attn_none", "ffn64") for c in choices), choices, fused)
        for score, _, choices, fused in everything(table)
    ]
    assert solution.score == pytest.approx(min(children)[0])


def test_a_table_with_spans_is_written_and_read(tmp_path: Path) -> None:
    table = with_spans(7, 3)
    write_table(tmp_path / "table.json", table)
    assert read_table(tmp_path / "table.json") == table


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"layers": [0, 3], "score": 0}, "is none of layers 0 to 2"),
        ({"layers": [1, 1], "score": 0}, "two layers at least"),
        ({"layers": [1], "score": 0}, r"write \[first, last\]"),
        ({"layers": [0, 1]}, "has no score"),
        ({"layers": [0, 1], "score": 0, "runtime": 1}, "did you mean 'runtime_ms'"),
        ({"layers": [0, 1], "score": 0, "runtime_ms": "x"}, "must be a finite number"),
    ],
)
def test_spans_that_are_none(span: dict, message: str, tmp_path: Path) -> None:
    write_table(tmp_path / "table.json", random_table(1, 3, block=False))
    value = json.loads((tmp_path / "table.json").read_text())
    with pytest.raises(ValueError, match=message):
        table_from_json({**value, "spans": [span]})


def test_a_file_with_spans_is_searched_by_the_command(tmp_path: Path) -> None:
    table = with_spans(11, 3)
    best = min(everything(table), key=lambda child: child[1]["runtime_ms"])
    write_table(tmp_path / "table.json", table)
    out = tmp_path / "out"
    limit = f"runtime_ms={best[1]['runtime_ms'] + 1e-6}"
    command = ["search", "--library", str(tmp_path / "table.json"), "--limit", limit]
    assert main([*command, "--out", str(out)]) == 0
    (solution,) = json.loads((out / "solutions.json").read_text())
    assert tuple(solution["fused"]) == best[3]
    assert len(best[3]) > 0
