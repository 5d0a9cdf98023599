"""Spans of layers that may be fused, inside the search: against brute force."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from support import stage_run
from tables import children, random_table

from fretsaw.checkpoint.folder import read_config
from fretsaw.cli import main
from fretsaw.model.place import Place
from fretsaw.pipeline.compression import compression
from fretsaw.puzzle.children.assemble import assemble
from fretsaw.puzzle.children.verify import verify
from fretsaw.puzzle.fuse.fuse import fuse
from fretsaw.puzzle.library.repair import widest
from fretsaw.puzzle.scores.replacements import all_jobs, span_of, without_wide_spans
from fretsaw.puzzle.scores.score import score
from fretsaw.puzzle.search.bounds import ffn_overhead, join
from fretsaw.puzzle.search.rules import NO_RULES
from fretsaw.puzzle.search.search import search
from fretsaw.puzzle.search.solutions import (
    Infeasible,
    pareto,
    search_by,
    search_table,
    smallest_cost,
)
from fretsaw.puzzle.search.table import FusedSpan, Pair, Table
from fretsaw.puzzle.search.table_json import read_table, table_from_json, write_table
from fretsaw.puzzle.settings import (
    AssembleSettings,
    FuseSettings,
    ScoreSettings,
    SearchSettings,
    SpaceSettings,
    VerifySettings,
)
from fretsaw.scenario.memory import gram_bytes
from fretsaw.stage.whole import write_json


def with_spans(seed: int, num_layers: int, *, block: bool = False) -> Table:
    """A random table with a span for every two to all of its layers; some scores are below 0."""
    table = random_table(seed, num_layers, block=block)
    rng = random.Random(seed + 1000)
    spans = tuple(
        FusedSpan(i, j, rng.uniform(-0.1, 0.5), {n: rng.uniform(0, 1.5) for n in table.cost_names})
        for i in range(num_layers)
        for j in range(i + 1, num_layers)
    )
    return replace(table, spans=spans)


def is_allowed(span: FusedSpan, choices: tuple) -> bool:
    for i in span.layers:
        names = choices[i].split("+") if isinstance(choices[i], str) else choices[i]
        attention, ffn = names
        if ffn == "ffn_none" or (i > span.first and attention != "attn_none"):
            return False
    return True


def everything(table: Table) -> list[tuple[float, dict[str, float], tuple, tuple[str, ...]]]:
    """Every child with every set of disjoint spans that it allows."""
    found = []
    for alone, costs, choices in children(replace(table, spans=())):
        possible = [span for span in table.spans if is_allowed(span, choices)]
        for count in range(len(possible) + 1):
            for taken in itertools.combinations(possible, count):
                layers = [i for s in taken for i in s.layers]
                if len(layers) > len(set(layers)):
                    continue
                less = {n: v - sum(s.saved[n] for s in taken) for n, v in costs.items()}
                fused = tuple(map(str, taken))
                found.append((alone + sum(s.score for s in taken), less, choices, fused))
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


def test_a_front_has_children_that_differ_in_what_is_fused_alone() -> None:
    table = with_spans(3, 3)
    only = (("attention", "attn_none"), ("ffn", "ffn64"))
    layers = tuple(
        {subblock: {name: layer[subblock][name]} for subblock, name in only}
        for layer in table.layers
    )
    spans = tuple(FusedSpan(i, i + 1, 0.1 * (i + 1), {"runtime_ms": i + 1.0}) for i in range(2))
    front = pareto(replace(table, layers=layers, spans=spans), "runtime_ms", 5, rules=NO_RULES)
    assert [one.fused for one in front] == [("1-2",), ("0-1",), ()]


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
        (alone + 0.3 * sum(c == ("attn_none", "ffn64") for c in choices), choices, fused)
        for alone, _, choices, fused in everything(table)
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


# --- through the stages ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small parent's scores with spans of up to three layers, and costs by hand."""
    root = tmp_path_factory.mktemp("scored")
    settings = ScoreSettings(
        space=SpaceSettings(kv_heads=(2,), ffn_percents=(50,), linear=False),
        repair_tokens=2048,
        tokens=2048,
        seq_len=64,
        fused=3,
        joint_pairs=0,
    )
    inputs = {"parent": tiny / "parent", "corpus": tiny / "corpus", "ranking": tiny / "ranking"}
    score(settings, inputs, stage_run(root / "scores"))
    config = read_config(tiny / "parent")
    own = config.blocks[0]
    widths = {own.ffn_name: 3.0, f"ffn{own.intermediate_size // 2}": 2.0, "ffn_none": 0.0}
    ms = {own.attention_name: 2.0, "gqa2": 1.5, "attn_none": 0.0, **widths}
    costs = {
        "scenario": "batch=1,in=8,out=8,dtype=fp32,device=cpu",
        "units": {},
        "fixed": {"prefill_ms": 1.0, "decode_ms": 1.0, "memory_mib": 1.0, "params": 10},
        "alternatives": {
            name: {"prefill_ms": x, "decode_ms": x, "memory_mib": x, "params": x}
            for name, x in ms.items()
        },
    }
    (root / "costs").mkdir()
    write_json(root / "costs/costs.json", costs)
    return {**inputs, "scores": root / "scores", "costs": root / "costs"}


def test_spans_are_scored_against_the_same_layers_apart(
    scored: dict[str, Path], tiny: Path
) -> None:
    spans = json.loads((scored["scores"] / "scores.json").read_text())["spans"]
    assert [one["layers"] for one in spans] == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    assert all(one["repair"]["kl_after"] <= one["repair"]["kl_before"] for one in spans)
    longer = {tuple(one["layers"]): one["score"] for one in spans}
    assert longer[0, 2] > longer[0, 1]  # one more FFN that no longer reads what the others write


def test_spans_too_wide_to_repair_are_left_out(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_config(tiny / "parent")
    width = config.blocks[0].intermediate_size
    jobs = all_jobs(config, ScoreSettings(fused=3), 0)
    kept = without_wide_spans(jobs, config, 2 * width)
    spans = [str(span) for names in kept.values() for n in names if (span := span_of(n))]
    assert spans == ["0-1", "1-2", "2-3"]
    assert "2 spans are left out" in capsys.readouterr().err
    at = Place(0, "ffn")
    assert [n for n in jobs[at] if n in kept[at]] == kept[at]  # nothing else is touched
    assert widest(gram_bytes(100)) == 100


def test_what_fusing_saves_is_the_intercept_of_the_widths(scored: dict[str, Path]) -> None:
    scores, costs = (
        json.loads((scored[name] / f"{name}.json").read_text()) for name in ("scores", "costs")
    )
    overhead = ffn_overhead(costs["alternatives"])
    assert overhead == pytest.approx({"prefill_ms": 1.0, "decode_ms": 1.0})
    table = join(scores, costs)
    assert [dict(span.saved)["decode_ms"] for span in table.spans] == pytest.approx([1, 2, 1, 2, 1])
    del costs["alternatives"]["ffn_none"]
    widest = max(n for n in costs["alternatives"] if n.startswith("ffn"))
    del costs["alternatives"][widest]
    with pytest.raises(ValueError, match="fewer than two widths"):
        ffn_overhead(costs["alternatives"])


def test_a_search_says_what_is_fused_and_the_stages_do_it(
    scored: dict[str, Path], tmp_path: Path
) -> None:
    own = 1 + 4 * (2.0 + 3.0)
    settings = SearchSettings(target=f"{own / 7.5:.4f}x decode", margin=0.0, pareto_points=2)
    search(settings, scored, stage_run(tmp_path / "search"))
    (best,) = json.loads((tmp_path / "search/solutions.json").read_text())
    assert best["fused"]
    assert best["costs"]["decode_ms"] <= 7.5 + 1e-6
    given = {**scored, "search": tmp_path / "search"}
    assembling = AssembleSettings(tokens=2048, seq_len=64)
    assemble(assembling, given, stage_run(tmp_path / "child"))
    fusing = FuseSettings(
        repair_tokens=2048,
        tokens=2048,
        seq_len=64,
        dependency_tokens=0,
        scenario="batch=1,in=8,out=8,dtype=fp32,device=cpu",
        rounds=1,
    )
    inputs = {"model": tmp_path / "child", "corpus": scored["corpus"], "search": given["search"]}
    fuse(fusing, inputs, stage_run(tmp_path / "fused"))
    found = json.loads((tmp_path / "fused/fusion.json").read_text())
    assert found["chosen"]["groups"] == best["fused"]
    with pytest.raises(ValueError, match="a search says what is fused"):
        fuse(replace(fusing, groups=("0-1",)), inputs, stage_run(tmp_path / "again"))
    with pytest.raises(ValueError, match="verify a search of scores made without"):
        verify(VerifySettings(), given, stage_run(tmp_path / "verify"))


def test_where_the_search_fuses_nothing_nothing_is(
    scored: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "search").mkdir()
    blocks = read_config(scored["parent"]).blocks
    own = [[block.attention_name, block.ffn_name] for block in blocks]
    write_json(tmp_path / "search/solutions.json", [{"choices": own}])
    inputs = {"model": scored["parent"], "corpus": scored["corpus"], "search": tmp_path / "search"}
    settings = FuseSettings(repair_tokens=0, tokens=2048, seq_len=64, dependency_tokens=0)
    fuse(settings, inputs, stage_run(tmp_path / "out"))
    assert "the search fuses nothing" in capsys.readouterr().err
    write_json(tmp_path / "search/solutions.json", [{"choices": own[1:]}])
    with pytest.raises(ValueError, match="the model is none of the solutions"):
        fuse(settings, inputs, stage_run(tmp_path / "again"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exact": True}, "leave out first_tokens, exact"),
        ({"space": SpaceSettings(none=False)}, "set none"),
    ],
)
def test_settings_that_contradict(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreSettings(fused=3, **values)


def test_a_recipe_of_a_joint_search(tmp_path: Path) -> None:
    given = {"parent": tmp_path, "target": "2x decode", "scenario": "batch=1"}
    stages = {stage.name: stage for stage in compression(**given, score=ScoreSettings(fused=4))}
    assert stages["2x-decode/fuse"].inputs["search"] == "2x-decode/search"
    with pytest.raises(ValueError, match="leave out candidates and verify"):
        compression(**given, score=ScoreSettings(fused=4), candidates=2)
    alone = {stage.name: stage for stage in compression(**given, fuse=FuseSettings())}
    assert "search" not in alone["2x-decode/fuse"].inputs
