"""The search against brute force, its explanations, and its independence of torch."""

import itertools
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tables import children, random_table

from fretsaw.puzzle.search.rules import NO_RULES
from fretsaw.puzzle.search.solutions import Infeasible, pareto, search_file, search_table
from fretsaw.puzzle.search.table import Alternative, Pair, Table
from fretsaw.puzzle.search.table_json import write_table

ROOT = Path(__file__).parents[3]


def feasible(table: Table, limits: dict[str, float]) -> list[tuple[float, dict, tuple]]:
    def fits(costs: dict[str, float]) -> bool:
        return all(
            sum(costs[part] for part in name.split("+")) <= limit * (1 + 1e-9)
            for name, limit in limits.items()
        )

    return sorted((c for c in children(table) if fits(c[1])), key=lambda child: child[0])


def random_limits(table: Table, seed: int, num_limits: int) -> dict[str, float]:
    """Limits that some child meets exactly: the costs of one drawn at random."""
    _, costs, _ = random.Random(seed).choice(children(table))
    return {name: costs[name] for name in list(costs)[:num_limits]}


@pytest.mark.parametrize("seed", range(36))
def test_the_optimum_is_brute_forces(seed):
    table = random_table(seed, 3, block=seed % 2 == 1)
    limits = random_limits(table, seed, 1 + seed % 3)
    (solution,) = search_table(table, limits)
    best = feasible(table, limits)[0]
    assert solution.proved
    assert solution.score == pytest.approx(best[0], abs=1e-9)
    costs = {choices: costs for _, costs, choices in children(table)}[solution.choices]
    assert solution.costs == pytest.approx(costs)
    assert all(solution.costs[name] <= limit * (1 + 1e-9) for name, limit in limits.items())


@pytest.mark.parametrize("seed", range(8))
def test_a_pool_is_brute_forces_best_first(seed):
    table = random_table(seed, 3, block=seed % 2 == 1)
    limits = random_limits(table, seed + 100, 1)
    expected = feasible(table, limits)[:8]
    pool = search_table(table, limits, num_solutions=8)
    assert [s.score for s in pool] == pytest.approx([c[0] for c in expected], abs=1e-9)
    assert len({s.choices for s in pool}) == len(pool)


@pytest.mark.parametrize("block", [False, True])
def test_a_diverse_pool_differs_in_layers(block):
    table = random_table(4, 4, block=block)
    pool = search_table(table, {}, num_solutions=3, min_difference=3)
    kept: list[tuple] = []
    for solution in pool:  # each is the best of those far enough from every earlier one

        def is_far(choices: tuple) -> bool:
            return all(sum(a != b for a, b in zip(choices, k, strict=True)) >= 3 for k in kept)

        assert is_far(solution.choices)
        best = next(c for c in feasible(table, {}) if is_far(c[2]))
        assert solution.score == pytest.approx(best[0], abs=1e-9)
        kept.append(solution.choices)
    assert len(pool) == 3


def test_equal_layers_share_columns_and_stay_exact():
    table = random_table(7, 1, block=False)
    equal = Table(table.layers * 4, table.fixed)
    limits = random_limits(equal, 3, 2)
    (solution,) = search_table(equal, limits)
    assert solution.score == pytest.approx(feasible(equal, limits)[0][0], abs=1e-9)


def test_eighty_equal_layers_just_below_a_reachable_cost():
    equal = Table(random_table(5, 1, block=False).layers * 80)
    (least, *_, most) = pareto(equal, "runtime_ms", 3)
    middle = (least.costs["runtime_ms"] + most.costs["runtime_ms"]) / 2
    (free,) = search_table(equal, {"runtime_ms": middle})
    bound = free.costs["runtime_ms"] * (1 - 3e-8)  # within HiGHS's own tolerance, not within ours
    (tight,) = search_table(equal, {"runtime_ms": bound})
    assert tight.proved
    assert tight.costs["runtime_ms"] <= bound * (1 + 1e-9)
    assert tight.score >= free.score


def test_a_limit_may_be_on_a_sum_of_costs():
    table = random_table(5, 3, block=False)
    limits = {"runtime_ms+memory_mib": 13.0}
    (solution,) = search_table(table, limits)
    assert solution.score == pytest.approx(feasible(table, limits)[0][0], abs=1e-9)
    assert set(solution.costs) == {"runtime_ms", "memory_mib", "params"}


def test_fewer_solutions_come_back_where_no_more_exist():
    table = random_table(1, 1, block=True)
    assert len(search_table(table, {}, num_solutions=50)) == 3  # four blocks, one without attention


def test_layer_0_keeps_attention_unless_told():
    keep, drop = Alternative(5.0, {"ms": 1.0}), Alternative(0.0, {"ms": 0.0})
    ffn = {"ffn64": Alternative(0.0, {"ms": 1.0})}
    table = Table(({"attention": {"gqa2": keep, "attn_none": drop}, "ffn": ffn},) * 2)
    (ruled,) = search_table(table, {})
    (free,) = search_table(table, {}, rules=NO_RULES)
    assert ruled.choices == (("gqa2", "ffn64"), ("attn_none", "ffn64"))
    assert free.choices == (("attn_none", "ffn64"),) * 2
    with pytest.raises(ValueError, match="layer 0 has no attention"):
        search_table(Table(({"attention": {"attn_none": drop}, "ffn": ffn},)), {})


# --- pairs --------------------------------------------------------------------------------------


def with_pairs(table: Table, seed: int, num_pairs: int) -> Table:
    """Pairs of either sign, across layers and within them, some of them twice."""
    rng, pairs = random.Random(seed), []
    places = [(i, s, n) for i, layer in enumerate(table.layers) for s in layer for n in layer[s]]
    while len(pairs) < num_pairs:
        (i, s, a), (k, r, b) = rng.sample(places, 2)
        if (i, s) != (k, r):
            pairs.append(Pair(((i, a), (k, b)), rng.choice((-1, 1)) * rng.lognormvariate(0, 1)))
    return replace(table, pairs=tuple(pairs))


@pytest.mark.parametrize("seed", range(24))
def test_pairs_are_brute_forces(seed):
    table = with_pairs(random_table(seed, 3, block=seed % 3 == 1), seed, 1 + 2 * (seed % 12))
    limits = random_limits(table, seed, seed % 3)
    pool = search_table(table, limits, num_solutions=4)
    expected = feasible(table, limits)[: len(pool)]
    assert [s.score for s in pool] == pytest.approx([c[0] for c in expected], abs=1e-9)
    assert all(s.proved for s in pool)


def test_conditional_depth_is_a_pair_below_zero():
    """Dropping either attention costs 1, dropping both only 1.5 instead of 2."""
    attention = {"gqa2": Alternative(0.0, {"ms": 1.0}), "attn_none": Alternative(1.0, {"ms": 0.0})}
    ffn = {"ffn64": Alternative(0.0, {"ms": 1.0}), "ffn_none": Alternative(0.8, {"ms": 0.0})}
    table = Table(({"attention": attention, "ffn": ffn},) * 3)
    limits = {"ms": 4.0}  # of 6: two subblocks go
    (apart,) = search_table(table, limits)
    both = Pair(((1, "attn_none"), (2, "attn_none")), -0.5)
    (together,) = search_table(replace(table, pairs=(both,)), limits)
    assert apart.score == pytest.approx(1.6)
    assert together.score == pytest.approx(1.5)
    assert together.choices[1:] == (("attn_none", "ffn64"),) * 2


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.8])
def test_alpha_is_the_share_of_equal_layers(alpha):
    table = random_table(4, 4, block=True)
    pool = search_table(table, {}, num_solutions=4, alpha=alpha)
    assert len(pool) > 1
    for first, second in itertools.combinations(pool, 2):
        equal = sum(a == b for a, b in zip(first.choices, second.choices, strict=True))
        assert equal <= alpha * 4


# --- infeasible -----------------------------------------------------------------------------------


def two_way_table() -> Table:
    """Layers that are either quick and large or slow and small."""
    block = {
        "quick": Alternative(0.0, {"runtime_ms": 1.0, "memory_mib": 10.0}),
        "small": Alternative(1.0, {"runtime_ms": 10.0, "memory_mib": 1.0}),
    }
    return Table(({"block": block},) * 4, {"runtime_ms": 2.0})


def test_infeasible_names_the_binding_limit_and_what_is_reachable():
    with pytest.raises(Infeasible) as error:
        search_table(two_way_table(), {"runtime_ms": 3.0, "memory_mib": 100.0})
    assert "runtime_ms cannot go that low" in str(error.value)
    assert "runtime_ms 6, memory_mib 4" in str(error.value)
    assert "raise runtime_ms to 6 " in str(error.value)


def test_infeasible_together_gives_the_smallest_relaxation():
    # 4 layers: runtime 6 + 9 per small layer, memory 40 - 9 per small layer.
    limits = {"runtime_ms": 20.0, "memory_mib": 20.0}
    with pytest.raises(Infeasible) as error:
        search_table(two_way_table(), limits)
    message = str(error.value)
    assert "each can be met alone but not together" in message
    assert "raise runtime_ms to 33" in message  # three small layers: memory 13
    assert "raise memory_mib to 31" in message  # one small layer: runtime 15
    # two small layers: 24 and 22, 1.2 times what was asked; one or three would be 1.55, 1.65
    assert "raise all alike: runtime_ms to 24, memory_mib to 22" in message
    assert error.value.reach is not None
    assert error.value.reach.factor == pytest.approx(1.2)
    assert search_table(two_way_table(), {**limits, "runtime_ms": 33.0})
    assert search_table(two_way_table(), {**limits, "memory_mib": 31.0})


def test_the_remedy_as_printed_can_be_typed_back():
    table = random_table(4, 5, block=False)
    with pytest.raises(Infeasible) as error:
        search_table(table, {"runtime_ms": 0.1})
    remedy = str(error.value).split("raise runtime_ms to ")[1].split(",")[0]
    assert search_table(table, {"runtime_ms": float(remedy)})


# --- front, files, processes ----------------------------------------------------------------------


def test_the_front_goes_from_the_cheapest_to_the_best():
    table = random_table(8, 3, block=False)
    front = pareto(table, "runtime_ms", 9)
    costs, scores = [s.costs["runtime_ms"] for s in front], [s.score for s in front]
    assert costs[0] == pytest.approx(min(c[1]["runtime_ms"] for c in children(table)))
    assert scores[-1] == pytest.approx(feasible(table, {})[0][0])
    assert scores == sorted(scores, reverse=True)
    for cost, score in zip(costs, scores, strict=True):
        assert score == pytest.approx(feasible(table, {"runtime_ms": cost})[0][0], abs=1e-9)


def test_a_file_in_and_a_file_out(tmp_path):
    table = random_table(2, 3, block=False)
    write_table(tmp_path / "table.json", table)
    out = tmp_path / "found"
    solutions = search_file(tmp_path / "table.json", ["runtime_ms=9", "memory_mib = 12"], out, 2)
    written = json.loads((out / "solutions.json").read_text())
    assert [set(entry) for entry in written] == [{"score", "proved", "costs", "choices"}] * 2
    assert [entry["score"] for entry in written] == [s.score for s in solutions]
    assert written[0]["proved"] is True
    assert written[0]["choices"] == [list(choice) for choice in solutions[0].choices]
    blocks = tmp_path / "blocks.json"
    write_table(blocks, two_way_table())
    search_file(blocks, ["runtime_ms=20"], tmp_path / "blocks")
    (entry,) = json.loads((tmp_path / "blocks" / "solutions.json").read_text())
    assert sorted(entry["choices"]) == ["quick", "quick", "quick", "quick"]


@pytest.mark.parametrize(
    ("limit", "complaint"),
    [
        ("runtime=9", "did you mean 'runtime_ms'"),
        ("runtime_ms", "write runtime_ms=20"),
        ("runtime_ms=soon", "write runtime_ms=20"),
        ("runtime_ms=nan", "write runtime_ms=20"),
        ("runtime_ms+speed=3", "unknown cost 'speed'"),
    ],
)
def test_limits_that_are_not_understood(tmp_path, limit, complaint):
    write_table(tmp_path / "table.json", random_table(2, 2, block=False))
    with pytest.raises(ValueError, match=complaint.replace("+", r"\+")):
        search_file(tmp_path / "table.json", [limit], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_search_prints_nothing_and_needs_no_torch(tmp_path):
    write_table(tmp_path / "table.json", random_table(2, 4, block=False))
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "import fretsaw.plan.compression, fretsaw.scenario.hardware, fretsaw.scenario.scenario\n"
        "from fretsaw.puzzle.search.solutions import search_file\n"
        "assert 'scipy.optimize' not in sys.modules\n"
        f"search_file(Path({str(tmp_path / 'table.json')!r}), ['runtime_ms=9'],"
        f" Path({str(tmp_path / 'out')!r}), 3)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert (tmp_path / "out" / "solutions.json").is_file()
