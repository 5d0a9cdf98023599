"""The whole score table of a small parent: gates, repair, resumption, exact and adaptive modes."""

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from support import stage_run

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.data.loader import write_tokens
from fretsaw.model.place import HALVES, Place
from fretsaw.puzzle.bld.bld import bld
from fretsaw.puzzle.library.alternatives import calibrate, make_change
from fretsaw.puzzle.library.ranking import read_orders
from fretsaw.puzzle.library.slices import sort_parent
from fretsaw.puzzle.scores.replacements import all_jobs, rounds
from fretsaw.puzzle.scores.score import OWN_KL, score
from fretsaw.puzzle.scores.stability import unsettled
from fretsaw.puzzle.settings import BldSettings, ScoreSettings, SpaceSettings
from fretsaw.stage.execute import StageRun
from fretsaw.stage.workers import Workers

SPACE = SpaceSettings(kv_heads=(2,), ffn_percents=(50, 25))
SETTINGS = ScoreSettings(space=SPACE, repair_tokens=2048, tokens=1024, seq_len=64, batch_rows=4)
SMALL = replace(
    SETTINGS,
    space=SpaceSettings(kv_heads=(2,), ffn_percents=(25,), linear=False, none=False),
    repair_tokens=512,
    ahead=0,
)


@pytest.fixture
def inputs(tiny: Path) -> dict[str, Path]:
    return {name: tiny / name for name in ("parent", "corpus", "ranking")}


def read(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


@pytest.mark.parametrize("replayed", ["needed", "all"])
def test_scores_of_a_small_parent(
    replayed: Literal["needed", "all"], inputs: dict[str, Path], tmp_path: Path
) -> None:
    first, settings = stage_run(tmp_path / "a"), replace(SETTINGS, replay=replayed)
    metrics = score(settings, inputs, first)
    scores = read(tmp_path / "a")
    layers = scores["layers"]
    count = sum(len(x["attention"]) + len(x["ffn"]) for x in layers)
    assert metrics["alternatives"] == count + 4, "and a joint pair a layer"
    for layer in layers:
        for own in (layer["attention"]["gqa4"], layer["ffn"]["ffn64"]):
            assert own["score"] == 0
            assert abs(own["kl"]) <= OWN_KL  # a BLAS's rounding
        assert layer["ffn"]["ffn_none"]["score"] > layer["ffn"]["ffn16"]["score"] > 0
        assert layer["attention"]["attn_none"]["score"] > 0
        if replayed == "all":
            assert 0 < layer["attention"]["attn_none"]["top1"] < 1
        assert layer["attention"]["attn_none"]["rows"] == 16
    assert {pair["layer"] for pair in scores["joint"]} == {0, 1, 2, 3}

    # Stopped after two layers and run again: the same table.
    run = stage_run(tmp_path / "b")
    kept = (first.resume_folder / "scores.jsonl").read_text().splitlines(keepends=True)
    (run.resume_folder / "scores.jsonl").write_text("".join(kept[:4]) + kept[4][:50])
    score(settings, inputs, run)
    assert read(tmp_path / "b") == scores


def test_any_number_of_workers_gives_the_same_scores(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    settings = replace(SMALL, first_tokens=256, tokens=512, regret=-1.0)
    score(settings, inputs, stage_run(tmp_path / "one", workers=Workers(workers=1)))
    run = stage_run(tmp_path / "two", workers=Workers(workers=2))
    killing_a_worker(run)
    score(settings, inputs, run)
    expected = (tmp_path / "one" / "scores.json").read_bytes()
    assert (tmp_path / "two" / "scores.json").read_bytes() == expected


def killing_a_worker(run: StageRun) -> None:
    """Have one of the run's processes killed after its third step."""
    plain = run.step

    def step(at: int, *arguments, **options) -> None:
        if at == 3:
            multiprocessing.active_children()[0].kill()
        plain(at, *arguments, **options)

    run.step = step  # type: ignore[method-assign]


def test_repair_pays_and_looks_ahead(inputs: dict[str, Path], tmp_path: Path) -> None:
    tables = {}
    for name, changes in (
        ("plain", {"repair_tokens": 0}),
        ("apart", {"ahead": 0}),
        ("ahead", {"ahead": 2}),
    ):
        score(replace(SETTINGS, replay="all", **changes), inputs, stage_run(tmp_path / name))
        tables[name] = read(tmp_path / name)["layers"]

    def total(name: str, kind: str, alternative: str) -> float:
        return sum(layer[kind][alternative]["score"] for layer in tables[name])

    for kind, alternative in (("ffn", "ffn16"), ("ffn", "ffn_linear"), ("attention", "gqa2")):
        plain, apart, ahead = (total(t, kind, alternative) for t in tables)
        assert plain > apart > ahead
    for layer in tables["apart"]:
        repairs = [layer["ffn"][name]["repair"] for name in ("ffn16", "ffn_linear")]
        assert all(0 < r["kl_after"] <= r["kl_before"] for r in repairs)
        assert any(r["kl_after"] < r["kl_before"] for r in repairs)
        assert layer["ffn"]["ffn_none"]["repair"] is None  # nothing to refit
    assert all(e["repair"] is None for layer in tables["plain"] for e in layer["ffn"].values())
    assert total("apart", "attention", "attn_none") == total("plain", "attention", "attn_none")
    assert total("ahead", "attention", "attn_none") < total("apart", "attention", "attn_none")


def test_estimates_with_what_is_replayed_tell_what_replay_tells(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The same order, and of what the search answers with the same figures."""
    tables, metrics = {}, {}
    for replayed in ("needed", "all"):
        settings = replace(SETTINGS, replay=replayed, space=SpaceSettings(), joint_pairs=0)
        metrics[replayed] = score(settings, inputs, stage_run(tmp_path / replayed))
        tables[replayed] = [
            ((i, half, name), entry)
            for i, layer in enumerate(read(tmp_path / replayed)["layers"])
            for half, entries in layer.items()
            for name, entry in entries.items()
        ]
    assert 8 < metrics["needed"]["replayed"] < metrics["all"]["alternatives"]
    few, all_ = (np.array([entry["score"] for _, entry in tables[r]]) for r in tables)
    assert np.corrcoef(rankdata(few), rankdata(all_))[0, 1] > 0.97  # Spearman's
    for (key, entry), (_, replayed) in zip(tables["needed"], tables["all"], strict=True):
        if "top1" in entry:
            assert entry["score"] == pytest.approx(replayed["score"], rel=1e-4), key
        else:
            assert entry["estimate"] >= 0


@torch.inference_mode()
def test_a_change_never_raises_the_kl_it_is_judged_by(tiny: Path) -> None:
    parent = checkpoint.load(tiny / "parent")
    sort_parent(parent, read_orders(tiny / "ranking", 4))
    calibration = calibrate(parent, tiny / "corpus", 512, 64, 4)
    for at in (Place(layer, half) for layer in range(4) for half in HALVES):
        name = {"attention": "attn_none", "ffn": "ffn_none"}[at.half]
        kl = []
        for ahead in range(3):
            change = make_change(parent, [name], calibration, ahead=ahead)
            states = calibration.judge.frontier.after(change.subblocks)
            kl.append(calibration.judge.kl(states, at + len(change.subblocks)).mean().item())
        assert kl[0] >= kl[1] - 1e-6 >= kl[2] - 2e-6
        calibration.walk()


def test_exact_scores_are_of_whole_blocks(inputs: dict[str, Path], tmp_path: Path) -> None:
    score(replace(SMALL, exact=True), inputs, stage_run(tmp_path / "exact"))
    score(replace(SMALL, joint_pairs=3), inputs, stage_run(tmp_path / "sum"))
    blocks = [layer["block"] for layer in read(tmp_path / "exact")["layers"]]
    assert all(len(block) == 2 * 2 and block["gqa4+ffn64"]["score"] == 0 for block in blocks)
    for pair in read(tmp_path / "sum")["joint"]:
        entry = blocks[pair["layer"]]["+".join(pair["names"])]
        assert entry["score"] == pytest.approx(pair["joint"], rel=1e-6)
        assert pair["sum"] > 0


def test_rounds_double() -> None:
    assert list(rounds(10, 0)) == [(0, 10)]
    assert list(rounds(10, 2)) == [(0, 2), (2, 4), (4, 8), (8, 10)]
    assert list(rounds(3, 8)) == [(0, 3)]


def test_adaptive_rounds_score_less(inputs: dict[str, Path], tmp_path: Path) -> None:
    settings = replace(SMALL, first_tokens=256, tokens=512, regret=-1.0)  # never content
    metrics = score(settings, inputs, stage_run(tmp_path / "all"))
    assert metrics["tokens"] == 512
    entries = [e for x in read(tmp_path / "all")["layers"] for k in x.values() for e in k.values()]
    assert {entry["rows"] for entry in entries} > {8}
    assert (
        score(replace(settings, regret=9.0), inputs, stage_run(tmp_path / "few"))["tokens"] == 256
    )


def test_clear_scores_are_settled_and_noisy_ones_are_not() -> None:
    costs = {"gqa4": 4.0, "gqa1": 1.0, "ffn4": 4.0, "ffn1": 1.0}
    rng = np.random.default_rng(0)

    def scores(noise: float) -> list:
        def rows(mean: float) -> np.ndarray:
            return mean + noise * rng.normal(size=16)

        return [
            {
                "attention": {"gqa4": np.zeros(16), "gqa1": rows(0.10 + 0.01 * i)},
                "ffn": {"ffn4": np.zeros(16), "ffn1": rows(0.15 + 0.01 * i)},
            }
            for i in range(4)
        ]

    needed, regret = unsettled(scores(1e-6), costs, seed=0)
    assert regret == 0
    assert (Place(0), "gqa1") in needed, "the cheapest loss of all is taken first"
    assert unsettled(scores(0.2), costs, seed=0)[1] > 0.05


def test_accuracy_as_a_score(inputs: dict[str, Path], tmp_path: Path) -> None:
    space = SpaceSettings(kv_heads=(4,), ffn_percents=(), linear=False)
    settings = replace(
        SMALL, space=space, metric="accuracy", task="word_problems:steps=1", num_problems=5,
        max_new_tokens=8, joint_pairs=0,
    )  # fmt: skip
    score(settings, inputs, stage_run(tmp_path))
    scores = read(tmp_path)
    assert scores["metric"] == "accuracy lost on the task"
    for layer in scores["layers"]:
        assert layer["ffn"]["ffn64"]["score"] == 0
        assert layer["ffn"]["ffn64"]["rows"] == 5
        assert -1 <= layer["attention"]["attn_none"]["score"] <= 1


def test_too_little_text_says_how_much(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_error 0\.1% is asked for; that takes about \d+"):
        score(replace(SMALL, max_error=0.001), inputs, stage_run(tmp_path))
    with pytest.raises(ValueError, match="repair needs two at least"):
        score(replace(SETTINGS, seq_len=64, repair_tokens=60), inputs, stage_run(tmp_path / "b"))


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="accuracy needs a task"):
        ScoreSettings(metric="accuracy")
    contradicting: list[dict[str, Any]] = [
        {"exact": True},
        {"metric": "accuracy", "task": "word_problems"},
    ]
    for changes in contradicting:
        with pytest.raises(ValueError, match="leave it at 0"):
            ScoreSettings(first_tokens=1024, **changes)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"seq_len": 0}, "a row has at least 1 token"),
        ({"tokens": 256}, "tokens 256: must be at least 2 rows of seq_len 256, 512"),
        ({"first_tokens": 512}, "first_tokens 512: must be at least 4 rows"),
        ({"batch_rows": 0}, "batch_rows 0"),
    ]
    for changes, match in wrong:
        with pytest.raises(ValueError, match=match):
            ScoreSettings(**changes)


def test_a_single_row_of_text_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    tokens = np.load(inputs["corpus"] / "heldout.npy")[:100]
    (tmp_path / "corpus").mkdir()
    write_tokens(tmp_path / "corpus" / "heldout.npy", tokens, 300)
    short = inputs | {"corpus": tmp_path / "corpus"}
    with pytest.raises(ValueError, match="one row has no standard error"):
        score(SETTINGS, short, stage_run(tmp_path / "scores"))


def test_a_space_whose_smallest_child_is_large_is_settled_too() -> None:
    layer = {"attention": {"gqa2": np.zeros(8), "gqa1": np.full(8, 0.1)},
             "ffn": {"ffn8": np.zeros(8)}}  # fmt: skip
    costs = {"gqa2": 100.0, "gqa1": 90.0, "ffn8": 100.0}  # 95 % of the parent at the least
    needed, regret = unsettled([layer, layer], costs, seed=0)
    assert regret == 0.0
    assert (Place(0), "gqa1") in needed


def test_jobs_are_the_same_for_the_same_seed(tiny: Path) -> None:
    config = checkpoint.read_config(tiny / "parent")
    assert all_jobs(config, SETTINGS, 1) == all_jobs(config, SETTINGS, 1)
    assert all_jobs(config, SETTINGS, 1) != all_jobs(config, SETTINGS, 2)
    assert len(loader.rows(loader.read_tokens(tiny / "corpus/heldout.npy"), 64, 6)) == 6


def test_trained_alternatives_score_better(inputs: dict[str, Path], tmp_path: Path) -> None:
    settings = BldSettings(
        space=SMALL.space, tokens=16_384, batch_tokens=512, seq_len=64, repair_tokens=512,
        heldout_tokens=1024,
    )  # fmt: skip
    bld(settings, inputs, stage_run(tmp_path / "bld"))
    score(SMALL, inputs, stage_run(tmp_path / "repaired"))
    score(SMALL, inputs | {"library": tmp_path / "bld"}, stage_run(tmp_path / "trained"))
    total = {
        name: sum(layer["ffn"]["ffn16"]["score"] for layer in read(tmp_path / name)["layers"])
        for name in ("repaired", "trained")
    }
    assert total["trained"] < total["repaired"]


def test_scores_by_source_are_means_over_its_share_of_the_rows(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    inputs["corpus"] = shutil.copytree(inputs["corpus"], tmp_path / "corpus")
    num_tokens = len(loader.read_tokens(inputs["corpus"] / "heldout.npy"))
    (inputs["corpus"] / loader.SOURCES).write_text('[{"name": "data"}, {"name": "data1"}]')
    of_token = (np.arange(num_tokens) // 100 % 3 == 0).astype(np.uint16)  # rows have 64
    np.save(inputs["corpus"] / loader.HELDOUT_SOURCES, of_token)
    score(SMALL, inputs, stage_run(tmp_path / "out"))
    share = float(of_token[1 : SMALL.tokens + 1].mean())
    for layer in read(tmp_path / "out")["layers"]:
        entry = layer["ffn"]["ffn16"]
        own = entry["by_source"]
        assert own["data"] != own["data1"]
        mean = (1 - share) * own["data"] + share * own["data1"]
        assert entry["score"] == pytest.approx(mean, rel=1e-6)
