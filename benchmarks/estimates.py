"""Scores by estimate against full replay, on a checkpoint of your own.

    python benchmarks/estimates.py PARENT CORPUS RANKING --layers 2 8 14 20 26 --rows rows.jsonl

Every alternative of the given layers is repaired and scored both ways on the same text; some are
also repaired and scored as before, each refit judged by replay. Printed are the processor's seconds
(of one thread, so that other processes matter little), the order, and what the exact search takes
of these layers at 1.25x and 1.5x fewer bytes by either table. Rows that are in the file are not
measured again.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import ModelConfig
from fretsaw.model.place import HALVES, Place
from fretsaw.puzzle.scores.replacements import Replacement, all_jobs
from fretsaw.puzzle.scores.score import costs_by_name
from fretsaw.puzzle.scores.scorer import Scorer, gradient_parts
from fretsaw.puzzle.scores.screening import NUM_ANCHORS, as_replayed
from fretsaw.puzzle.search.solutions import search_table
from fretsaw.puzzle.search.table import Alternative, Table
from fretsaw.puzzle.settings import ScoreSettings
from fretsaw.stage.own_file import append_row, read_jsonl

SPEEDS = (1.25, 1.5)
AS_BEFORE_EVERY = 6  # alternatives: repaired as before, too
Row = dict[str, Any]


def measure(
    inputs: dict[str, Path], settings: ScoreSettings, layers: Sequence[int], file: Path
) -> tuple[list[Row], float]:
    """Return a row for each alternative, and the seconds that the gradients took."""
    config = checkpoint.read_config(inputs["parent"])
    before = replace(settings, judge="replay", replay="all")
    folder = file.with_suffix(".gradients")
    estimating = Scorer(settings, inputs, "cpu", 0, folder)
    replaying = Scorer(before, inputs, "cpu", 0, folder)
    started = time.process_time()
    for part in gradient_parts(settings, inputs, config, folder):
        estimating(part, print)
    gradients_s = time.process_time() - started
    done = {(row["layer"], row["name"]) for row in read_jsonl(file)}
    jobs = all_jobs(config, settings, 0)
    rows = (0, settings.tokens // settings.seq_len)
    for place in (Place(layer, half) for layer in layers for half in HALVES):
        for number, names in enumerate(jobs[place]):
            if (place.layer, names[0]) in done:
                continue
            row: Row = {"layer": place.layer, "half": place.half, "name": names[0]}
            wanted = Replacement(rows, place, names, by_estimate=True)
            row["estimate"], row["estimate_s"] = timed(estimating, wanted, "estimate")
            wanted = replace(wanted, by_estimate=False)  # the repaired blocks are still at hand
            row["kl"], row["replay_s"] = timed(estimating, wanted, "kl")
            if number % AS_BEFORE_EVERY == 1:
                row["kl_before"], row["before_s"] = timed(replaying, wanted, "kl")
            append_row(file, row)
            print(row)
    return read_jsonl(file), gradients_s


def timed(scorer: Scorer, wanted: Replacement, figure: str) -> tuple[float, float]:
    """Return a figure's mean and the seconds it took, standing before the subblock already."""
    scorer.stand_before(wanted)
    started = time.process_time()
    values = scorer(wanted, print)["figures"][figure]
    return statistics.mean(values), time.process_time() - started


def screened(rows: Sequence[Row], costs: dict[str, float]) -> tuple[list[float], set[int]]:
    """Return the scores that the stage gives these rows, and which its search answers with."""
    estimates = np.array([row["estimate"] for row in rows])
    others = [n for n in estimates.argsort(kind="stable").tolist() if estimates[n] > 1e-9]
    replayed = {others[n] for n in np.linspace(0, len(others) - 1, NUM_ANCHORS).round().astype(int)}
    answers: set[int] = set()
    while True:
        known = [(rows[n]["estimate"], rows[n]["kl"]) for n in replayed]
        read = as_replayed(estimates, known).tolist()
        scores = [rows[n]["kl"] if n in replayed else read[n] for n in range(len(rows))]
        wanted = {n for speed in (*SPEEDS, 2.0) for n in chosen(rows, scores, costs, speed)}
        answers |= wanted & set(others)
        if not answers - replayed:
            return scores, answers
        replayed |= answers


def chosen(
    rows: Sequence[Row], scores: Sequence[float], costs: dict[str, float], speed: float
) -> list[int]:
    """Return the rows that the exact search takes where the layers cost so much less."""
    layers = sorted({row["layer"] for row in rows})
    table: list[dict[str, dict[str, Alternative]]] = [{half: {} for half in HALVES} for _ in layers]
    at = {}
    for n, (row, score) in enumerate(zip(rows, scores, strict=True)):
        place = layers.index(row["layer"]), row["half"], row["name"]
        table[place[0]][place[1]][place[2]] = Alternative(score, {"cost": costs[place[2]]})
        at[place] = n
    whole = sum(
        next(iter(half.values())).costs["cost"] for layer in table for half in layer.values()
    )
    best = search_table(Table(layers=tuple(table)), {"cost": whole / speed})[0]
    return [
        at[layer, half, name]
        for layer, pair in enumerate(best.choices)
        for half, name in zip(HALVES, pair, strict=True)
    ]


def report(rows: Sequence[Row], gradients_s: float, config: ModelConfig, costs: dict) -> None:
    """Print what both ways take and tell."""
    scores, answers = screened(rows, costs)
    full = [row["kl"] for row in rows]
    count = len(rows) * config.num_hidden_layers / len({row["layer"] for row in rows})
    mean = {
        key: statistics.mean(row[key] for row in rows if key in row)
        for key in ("estimate_s", "replay_s", "before_s")
    }
    num_replayed = NUM_ANCHORS + count * len(answers) / len(rows)
    now = gradients_s + count * mean["estimate_s"] + num_replayed * mean["replay_s"]
    print(f"{len(rows)} alternatives, {len(answers)} of them answers; seconds of one: {mean}")
    print(f"a whole table of {count:.0f}: as before {count * mean['before_s']:.0f} s, ", end="")
    print(f"by estimates {now:.0f} s ({gradients_s:.0f} s of it gradients, ", end="")
    print(f"{num_replayed:.0f} replays): ", end="")
    print(f"{now / (count * mean['before_s']):.3f} of the time")
    order = np.corrcoef(rankdata(scores), rankdata(full))[0, 1]
    print(f"Spearman with full replay {order:.4f}")
    for low, high in ((0, 1e-3), (1e-3, 1e-2), (1e-2, 3e-2), (3e-2, 1e-1), (1e-1, 1e9)):
        ratios = [row["estimate"] / row["kl"] for row in rows if max(low, 1e-9) < row["kl"] <= high]
        if ratios:
            quarters = np.quantile(ratios, (0.1, 0.5, 0.9)).round(2).tolist()
            print(f"estimate / replay, KL {low:g} to {high:g}: {quarters} ({len(ratios)})")
    for speed in SPEEDS:
        ours, theirs = (
            sum(full[n] for n in chosen(rows, table, costs, speed)) for table in (scores, full)
        )
        print(f"{speed}x: replayed sum of our choice {ours:.4f}, of full replay's {theirs:.4f}")
    pairs = [(row["kl"], row["kl_before"]) for row in rows if "kl_before" in row]
    ratio = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    print(f"KL with refits judged by estimate over by replay: {ratio:.4f} ({len(pairs)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("parent", "corpus", "ranking"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repair-tokens", type=int, default=32_768)
    parser.add_argument("--rows", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs = {name: getattr(options, name) for name in ("parent", "corpus", "ranking")}
    settings = ScoreSettings(
        tokens=options.tokens, repair_tokens=options.repair_tokens, joint_pairs=0
    )
    config = checkpoint.read_config(options.parent)
    rows, gradients_s = measure(inputs, settings, options.layers, options.rows)
    report(rows, gradients_s, config, costs_by_name(config, settings, inputs))


if __name__ == "__main__":
    main()
