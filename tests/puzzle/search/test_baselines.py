"""The searches that the exact one is compared with: by hand, within limits, and never ahead."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fretsaw.puzzle.search.explain import Infeasible
from fretsaw.puzzle.search.program import within
from fretsaw.puzzle.search.rules import FIRST_ATTENTION, NO_RULES
from fretsaw.puzzle.search.solutions import search_by, search_table
from fretsaw.puzzle.search.table import Alternative, Pair, Table
from fretsaw.puzzle.settings import Method

METHODS: tuple[Method, ...] = (
    *("greedy", "uniform", "depth", "contiguous", "max_params", "random"),
)
SIZES = {"gqa4": 4, "gqa1": 1, "attn_none": 0, "ffn64": 6, "ffn32": 3, "ffn_none": 0}


def table_of(scores: list[dict[str, float]]) -> Table:
    """Layers of the six alternatives; time and parameters go with their sizes."""

    def half(names: tuple[str, ...], layer: dict[str, float]) -> dict[str, Alternative]:
        return {n: Alternative(layer[n], {"ms": SIZES[n], "params": SIZES[n]}) for n in names}

    return Table(
        tuple(
            {"attention": half(tuple(SIZES)[:3], layer), "ffn": half(tuple(SIZES)[3:], layer)}
            for layer in scores
        ),
        {"ms": 1.0},
    )


def layer_of(gqa1: float, attn_none: float, ffn32: float, ffn_none: float) -> dict[str, float]:
    own = {"gqa4": 0.0, "ffn64": 0.0}
    return own | {"gqa1": gqa1, "attn_none": attn_none, "ffn32": ffn32, "ffn_none": ffn_none}


FOUR = table_of(
    [
        layer_of(5.0, 9.0, 5.0, 9.0),
        layer_of(0.2, 0.5, 0.1, 0.4),
        layer_of(0.3, 0.7, 0.2, 0.6),
        layer_of(2.0, 3.0, 1.0, 4.0),
    ]
)


def test_greedy_by_hand() -> None:
    """31 ms less 1 fixed: 7.5 a layer. Layers by mean score: 1, 2, 3, 0.

    Layer 1: gqa4 + ffn32 = 7, 0.5 left. Layer 2 (8 ms): gqa4 + ffn32 = 7, 1.0 left. Layer 3 (8.5):
    gqa4 + ffn32 = 7, 1.5 left. Layer 0 (9): gqa4 + ffn32 = 7 at 5.0 or gqa1 + ffn64 = 7 at 5.0.
    """
    (found,) = search_by("greedy", FOUR, {"ms": 31.0})
    assert found.choices[1:] == (("gqa4", "ffn32"),) * 3
    assert found.score == pytest.approx(0.1 + 0.2 + 1.0 + 5.0)
    assert not found.proved


def test_uniform_depth_and_contiguous_by_hand() -> None:
    limits = {"ms": 31.0}  # of 41
    (uniform,) = search_by("uniform", FOUR, limits)
    assert set(uniform.choices) == {("gqa4", "ffn32")}  # 1 + 4 x 7 = 29, 6.3 against 7.5 of gqa1
    (depth,) = search_by("depth", FOUR, limits)
    assert depth.choices[1] == ("attn_none", "ffn_none")  # 0.9, the least that drops a layer
    assert depth.costs["ms"] == 31.0
    tight = {"ms": 22.0}  # two layers go: 1 and 2, which are neighbours
    by_score, run = (search_by(m, FOUR, tight)[0] for m in ("depth", "contiguous"))
    assert by_score.choices == run.choices
    assert by_score.score == pytest.approx(0.9 + 1.3)


def test_a_contiguous_run_may_cost_more_than_single_layers() -> None:
    scores = [layer_of(1, x, 1, x) for x in (9.0, 0.1, 3.0, 0.1, 2.0)]
    table, limits = table_of(scores), {"ms": 31.0}
    (single,), (run,) = (search_by(m, table, limits) for m in ("depth", "contiguous"))
    nothing = ("attn_none", "ffn_none")
    assert [i for i, c in enumerate(single.choices) if c == nothing] == [1, 3]
    assert [i for i, c in enumerate(run.choices) if c == nothing] == [3, 4]


def test_most_parameters_by_hand() -> None:
    (found,) = search_by("max_params", FOUR, {"ms": 31.0})
    assert found.costs["params"] == 30
    layer = {"block": {"a": Alternative(0.0, {"ms": 1.0})}}
    with pytest.raises(ValueError, match="needs the cost 'params'"):
        search_by("max_params", Table((layer,)), {})


def test_random_children_differ_by_seed_and_can_take_no_more() -> None:
    limits = {"ms": 24.0}
    children = [search_by("random", FOUR, limits, seed=s)[0] for s in range(8)]
    assert len({child.choices for child in children}) > 1
    assert children[0] == search_by("random", FOUR, limits, seed=0)[0]
    for child in children:
        for i, (attention, ffn) in enumerate(child.choices):
            own = FOUR.layers[i]
            for half, taken in (("attention", attention), ("ffn", ffn)):
                larger = [n for n in own[half] if SIZES[n] > SIZES[taken]]
                assert all(child.costs["ms"] - SIZES[taken] + SIZES[n] > 24.0 for n in larger)
    pool = search_by("random", FOUR, limits, num_solutions=5)
    assert len({child.choices for child in pool}) == 5


def test_what_no_method_can_meet_is_explained_as_by_the_exact_search() -> None:
    for method in METHODS:
        with pytest.raises(Infeasible, match=r"ms cannot go that low.*raise ms to 2"):
            search_by(method, FOUR, {"ms": 1.5})
    with pytest.raises(Infeasible, match=r"method uniform finds no child .* there are some"):
        search_by("uniform", FOUR, {"ms": 4.0})  # layer 0 keeps attention, so all would


figures = st.floats(0, 4, allow_nan=False)
layers = st.lists(st.builds(layer_of, figures, figures, figures, figures), min_size=2, max_size=4)


@given(layers, st.floats(0.05, 1.0), st.integers(0, 5), st.booleans())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_none_is_ahead_of_the_exact_search_or_over_a_limit(scores, share, num_pairs, first) -> None:
    table = table_of(scores)
    rng = random.Random(num_pairs)
    pairs = tuple(
        Pair(((0, rng.choice(tuple(SIZES)[:3])), (1, rng.choice(tuple(SIZES)))), rng.gauss(0, 2))
        for _ in range(num_pairs)
    )
    table = replace(table, pairs=pairs)
    rules = FIRST_ATTENTION if first else NO_RULES
    limits = {"ms": 1.0 + share * 10 * len(scores), "params": 9.0 * len(scores)}
    try:
        (best,) = search_table(table, limits, rules=rules)
    except Infeasible:
        best = None
    for method in METHODS:
        try:
            found = search_by(method, table, limits, rules=rules)
        except Infeasible:
            continue
        assert best is not None, f"{method} found a child where there is none"
        for solution in found:
            assert solution.score >= best.score - 1e-9
            assert all(within(solution.costs[name], limit) for name, limit in limits.items())
            assert not first or solution.choices[0][0] != "attn_none"
