"""A finished compression written by hand: three layers, every file the report reads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import answer_row

from fretsaw.chat.reasoning import with_reasoning
from fretsaw.checkpoint import decilm, llama
from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.rollout.rows import write_rows
from fretsaw.stage import artifact

SCENARIO = "batch=4,in=8,out=8,dtype=fp32,device=cpu"
PARENT = [("gqa2", "ffn32")] * 3
CHILD = [("gqa2", "ffn8"), ("attn_none", "ffn32"), ("gqa1", "ffn_none")]
COSTS = {
    "gqa2": (4.0, 8.0, 2.0, 100),
    "gqa1": (3.0, 6.0, 1.0, 80),
    "attn_none": (0.0, 0.0, 0.0, 0),
    "ffn32": (3.0, 4.0, 1.0, 200),
    "ffn8": (1.0, 1.0, 0.3, 50),
    "ffn_none": (0.0, 0.0, 0.0, 0),
}
MS = ("prefill_ms", "decode_ms")
COST_NAMES = ("prefill_ms", "decode_ms", "memory_mib", "params")


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def finish(
    folder: Path, stage: str, settings: dict, inputs: dict[str, Path], metrics: dict | None = None
) -> Path:
    """Write the manifest of a made-up stage."""
    manifest = {
        "schema": artifact.SCHEMA,
        "stage": stage,
        "settings": settings,
        "inputs": {n: {"path": str(p), "hash": artifact.hash_path(p)} for n, p in inputs.items()},
        "outputs": {"made": f"up for {stage}"},
        "seed": 3,
        "versions": {"python": "3.11", "fretsaw": "0.1.0"},
        "metrics": metrics or {},
        "run": {
            "wall_s": 61.5,
            "finished": "2026-01-01T00:00:00+0000",
            "peak_mib": 1234,
            "host": "h",
            "device": "cpu",
            "dtype": "bf16",
        },
    }
    write(folder / artifact.MANIFEST, manifest)
    return folder


def model_configs() -> tuple[ModelConfig, ModelConfig]:
    shared: dict[str, Any] = {
        **{"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "head_dim": 8},
        **{"bos_token_id": 0, "eos_token_ids": (1,)},
    }
    parent, child = (
        ModelConfig(blocks=blocks_from_names(names), **shared) for names in (PARENT, CHILD)
    )
    return parent, child


def scores() -> list[dict[str, Any]]:
    def kind(names: tuple[str, ...], i: int) -> dict[str, Any]:
        return {
            name: {
                **{"score": 0.01 * k * (i + 1), "stderr": 0.001 * k},
                "repair": {"ridge": 0.1, "kl_before": 0.05 * k, "kl_after": 0.02 * k}
                if k
                else None,
            }
            for k, name in enumerate(names)
        }

    return [
        {
            "attention": kind(("gqa2", "gqa1", "attn_none"), i),
            "ffn": kind(("ffn32", "ffn8", "ffn_none"), i),
        }
        for i in range(3)
    ]


def write_search(folder: Path, target: str) -> None:
    layers, fixed = scores(), dict(zip(COST_NAMES, (2.0, 3.0, 0.5, 500), strict=True))
    alternatives = {
        name: dict(zip(COST_NAMES, values, strict=True)) for name, values in COSTS.items()
    }
    table = [
        {
            kind: {n: {"score": e["score"], **alternatives[n]} for n, e in layer[kind].items()}
            for kind in layer
        }
        for layer in layers
    ]
    write(folder / "search/table.json", {"units": {}, "fixed": fixed, "layers": table})
    write(folder / "search/forecast.json", {"target": target, "scenario": SCENARIO})
    front = [{"score": score, "costs": {"decode_ms": ms}} for score, ms in ((0, 39), (0.1, 22))]
    write(folder / "search/front.json", front)
    found = {"method": "greedy", "score": 0.35, "costs": {"decode_ms": 20}}
    write(folder / "search/baselines.json", [found, {"method": "depth", "infeasible": "too slow"}])
    pairs = [{"layer": i, "names": ["gqa1", "ffn8"], "joint": 0.03, "sum": 0.02} for i in range(2)]
    write(
        folder / "score/scores.json",
        {"metric": "KL", "tokens": 4096, "layers": layers, "joint": pairs},
    )
    served = {
        "scenario": SCENARIO,
        "fixed": fixed,
        "alternatives": alternatives,
        "left_out_error": {p: {"child 0": 0.04, "child 1": 0.01} for p in MS},
        "noise_floor": dict.fromkeys(MS, 0.03),
    }
    other = {**served, "scenario": SCENARIO.replace("batch=4", "batch=1")}
    hardware = {"device": "x86_64", "threads": 2}
    write(
        folder / "cost/costs.json", {**served, "hardware": hardware, "scenarios": [served, other]}
    )


def task_figures() -> dict[str, Any]:
    answers = {
        "accuracy": 0.8,
        "interval": [0.7, 0.9],
        "by_kind": {"2 steps": 0.9, "3 steps": 0.7},
        "tokens_per_answer": 20.0,
        "format_faults": 0.01,
        "truncated": 0.0,
    }
    return {
        "on": answers,
        "off": answers,
        "difference": {"gain": 0.0, "interval": [-0.1, 0.1]},
    }


def write_results(folder: Path) -> None:
    write(
        folder / "eval/results.json",
        {
            **{"child_loss": 1.25, "parent_loss": 1.2, "kl": 0.05, "top1_agreement": 0.91},
            **{"child_perplexity": 3.49, "parent_perplexity": 3.32},
            "tasks": {
                "word_problems": {
                    **{name: task_figures() for name in ("child", "parent")},
                    "kept": {"kept": 1.0, "interval": [0.9, 1.1]},
                }
            },
        },
    )
    speed = {"spread": [1.5, 1.8], "noise_floor": 0.02, "parent_ms": 40.0, "child_ms": 24.0}
    phases = {"prefill": {"speedup": 1.5, **speed}, "decode": {"speedup": 1.7, **speed}}
    write(folder / "bench/speed.json", {"scenario": SCENARIO, "rounds": [{}] * 9, **phases})


@pytest.fixture
def finished(tmp_path: Path) -> dict[str, Path]:
    """The report's inputs: a finished compression of a parent that came from outside."""
    base = tmp_path / "run"
    parent, child = model_configs()
    outside = tmp_path / "parent & co"
    write(outside / "config.json", llama.config_to_json(parent, dtype="fp32"))
    for name in ("assemble", "distill"):
        write(base / name / "config.json", decilm.config_to_json(child, dtype="fp32"))
    rows = [{"step": i, "kl": 0.2 / i, "cosine": 0.1} for i in range(1, 6)]
    rows[-1] |= {"heldout_loss": 1.26, "heldout_kl": 0.06}
    (base / "distill/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_search(base, "1.5x decode, 90% memory")
    write_results(base)
    (base / "rank").mkdir()
    channels = {f"layers.{i}.channels": np.arange(32, dtype=np.float32) for i in range(3)}
    save_file(channels, base / "rank/ranking.safetensors")

    corpus = finish(
        base / "corpus",
        "corpus",
        {"source": "world", "dataset": ""},
        {},
        {"train_tokens": 10_000, "heldout_tokens": 1_000},
    )
    text = {"parent": outside, "corpus": corpus}
    rank = finish(base / "rank", "rank", {"tokens": 64}, text)
    score = finish(base / "score", "score", {"tokens": 64}, {**text, "ranking": rank})
    cost = finish(base / "cost", "cost", {"scenario": SCENARIO}, {"parent": outside})
    search = finish(base / "search", "search", {}, {"scores": score, "costs": cost})
    assembled = finish(base / "assemble", "assemble", {"solution": 0}, {**text, "search": search})
    update = {"optimizer": "adamw", "learning_rate": 1e-3}
    train = {"batch_tokens": 64, "seq_len": 16, "update": update}
    healed = finish(
        base / "distill",
        "distill",
        {"kl_weight": 1.0, "cosine_weight": 1.0, "lm_weight": 0.0, "train": train},
        {**text, "child": assembled},
        {
            **{"before_loss": 1.4, "before_kl": 0.2, "best_step": 5, "tokens": 320},
            **{"heldout_loss": 1.26, "heldout_kl": 0.06},
        },
    )
    evaluated = finish(base / "eval", "eval", {}, {**text, "model": healed})
    bench = finish(base / "bench", "bench", {}, {"parent": outside, "child": healed})
    return {
        **{"parent": outside, "ranking": rank, "scores": score, "costs": cost, "search": search},
        **{"assembled": assembled, "child": healed, "eval": evaluated, "bench": bench},
    }


@pytest.fixture
def at_full_strength(finished: dict[str, Path]) -> dict[str, Path]:
    """The report's inputs where alternatives were trained and whole children measured."""
    base = finished["child"].parent
    row = {"plain": 0.08, "repaired": 0.04, "trained": 0.05, "refitted": 0.02, "kept": "refitted"}
    kinds = {"attention": {"gqa1": row}, "ffn": {"ffn8": {**row, "kept": "repaired"}}}
    write(base / "bld/bld.json", {"layers": [kinds] * 3})
    child = {"sum": 0.14, "corrected": 0.1, "measured": 0.11, "stderr": 0.01, "is_chosen": False}
    before = [list(pair) for pair in CHILD]
    after = [["gqa1", "ffn8"], *before[1:]]
    write(
        finished["search"] / "correction.json",
        {
            "children": [child, {**child, "sum": 0.2, "measured": 0.09, "is_chosen": True}],
            "pairs": [],
            "before": {"choices": before, "measured": 0.11},
            "after": {"choices": after, "measured": 0.09},
        },
    )
    candidate = {"solution": 0, "score": 0.14, "figure": 0.07}
    write(
        finished["assembled"] / "chosen.json",
        {
            "candidate": 1,
            "figure": "heldout_kl",
            "candidates": [candidate, {**candidate, "figure": 0.06}],
        },
    )
    return finished | {"library": base / "bld"}


@pytest.fixture
def with_fusion(finished: dict[str, Path]) -> dict[str, Path]:
    """The report's inputs where the FFNs of layers 0 and 1 were fused before healing."""
    base = finished["child"].parent
    _, child = model_configs()
    blocks = blocks_from_names([("gqa2", "ffn40"), ("gqa1", "ffn_none")])
    fused = replace(child, blocks=blocks)
    for name in ("fuse", "distill"):
        write(base / name / "config.json", decilm.config_to_json(fused, dtype="fp32"))
    group = {"group": "0-1", "width": 40, "kl": 0.002, "stderr": 0.0004}
    repair = {"ridge": 1e-4, "kl_before": 0.03, "kl_after": 0.001}
    one = {"groups": ["0-1"], "kl_sum": 0.002, "saved_ms": 2.5}
    row = {"before_ms": 24.0, "after_ms": 21.0, "speedup": 1.143, "noise": 0.01}
    write(
        base / "fuse/fusion.json",
        {
            "runs": [[0, 1]],
            "groups": [{**group, "repair": repair, "saved": {}}],
            "saving_of": f"decode_ms at {SCENARIO}",
            "front": [{"groups": [], "kl_sum": 0.0, "saved_ms": 0.0}, one],
            "chosen": {**one, "kl": 0.0025, "stderr": 0.0004, "repairs": [repair], "tried": []},
            "times": {SCENARIO: dict.fromkeys(MS, row)},
            "foretold": {},
        },
    )
    matrix = [[None, 0.01, 0.2], [None, None, 0.3], [None, None, None]]
    write(base / "fuse/dependency.json", {"what": "", "tokens": 64, "matrix": matrix})
    inputs = {"model": finished["assembled"]}
    return finished | {"fused": finish(base / "fuse", "fuse", {"max_kl": 0.01}, inputs)}


@pytest.fixture
def with_8_bits(finished: dict[str, Path]) -> dict[str, Path]:
    """The report's inputs with the parent in FP8 beside the child."""
    folder = finished["child"].parent / "parent-fp8"
    results = {"kl": 0.00321, "top1_agreement": 0.987, "child_loss": 1.234, "tasks": {}}
    write(folder / "results.json", results)
    inputs = {"model": finished["parent"]}
    return finished | {"quantised": finish(folder, "eval", {"weights": "fp8"}, inputs)}


@pytest.fixture
def with_reasoner(finished: dict[str, Path]) -> dict[str, Path]:
    """The report's inputs with a tuned and a reinforced model beside the compression's."""
    base = finished["child"].parent
    more = {}
    for name, key in (("sft", "tuned"), ("rl", "reasoner")):
        metrics = {"before_reward_on": 0.4, "before_reward_off": 0.1}
        settings = {"updates_per_rollout": 2}
        (base / name).mkdir()
        rows = [
            {"step": 1, "reward_on": 0.3, "reward_off": 0.1},
            {"step": 4, "heldout_reward_on": 0.6, "heldout_reward_off": 0.1},
        ]
        (base / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        more[key] = finish(base / name, name, settings, {"model": finished["child"]}, metrics)
        folder = base / f"{name}-eval"
        folder.mkdir()
        results = {"tasks": {"word_problems": {"child": task_figures()}}}
        (folder / "results.json").write_text(json.dumps(results))
        answers = [
            answer_row(0, "on", with_reasoning("2 + 2 = 4", "4")),
            answer_row(0, "off", "5", reward=0.0),
        ]
        write_rows(folder / "answers-child-0.parquet", answers)
        more[f"{key}_eval"] = finish(folder, "eval", {}, {"model": more[key]})
    return finished | more
