"""How long the exact search takes, and what it is ahead of: random tables, one thread.

    python benchmarks/mip.py [--instances 20] [--out mip.json]

An instance has 80 layers of 16 blocks (2 attentions x 8 FFN widths), as Puzzle's published library
of a 70B: random scores that grow with what is removed, random times, and limits on time and memory
between the least and the parent's. Bars: median <= 1 s, worst <= 5 s; 27 points in 30 s.
"""

import argparse
import json
import platform
import random
import statistics
import time
from pathlib import Path

import scipy

from fretsaw.puzzle.search.explain import Infeasible
from fretsaw.puzzle.search.program import Solution
from fretsaw.puzzle.search.solutions import pareto, search_by, search_table
from fretsaw.puzzle.search.table import Alternative, Pair, Table

WIDTHS = (1.0, 0.87, 0.75, 0.62, 0.5, 0.25, 0.1, 0.0)
METHODS = ("greedy", "uniform", "depth", "contiguous", "max_params", "random")


def random_table(seed: int, num_layers: int, *, apart: bool) -> Table:
    """Draw a table of 16 blocks a layer, or of their two attentions and eight FFNs apart."""
    rng = random.Random(seed)

    def alternative(kept: float, size: float) -> Alternative:
        score = rng.lognormvariate(0, 1) * (1 - kept) ** 2 * size
        costs = {
            "runtime_ms": size * kept * rng.uniform(0.9, 1.1) + 0.02,
            "memory_mib": 10 * size * kept,
            "params": 1e6 * size * kept,
        }
        return Alternative(score, costs)

    def layer() -> dict[str, dict[str, Alternative]]:
        attention = {n: alternative(k, 1.0) for n, k in (("gqa8", 1.0), ("attn_none", 0.0))}
        ffn = {f"ffn{round(w * 28672)}" if w else "ffn_none": alternative(w, 3.0) for w in WIDTHS}
        if apart:
            return {"attention": attention, "ffn": ffn}
        blocks = {}
        for a, x in attention.items():
            for f, y in ffn.items():
                costs = {name: x.costs[name] + y.costs[name] for name in x.costs}
                joint = rng.uniform(0.9, 1.3)
                blocks[f"{a}+{f}"] = Alternative(joint * (x.score + y.score), costs)
        return {"block": blocks}

    layers = tuple(layer() for _ in range(num_layers))
    return Table(layers, {"runtime_ms": 2.0, "memory_mib": 40.0, "params": 4e6})


def parent_costs(table: Table) -> dict[str, float]:
    costs = dict(table.fixed)
    for layer in table.layers:
        for alternatives in layer.values():
            for name, value in next(iter(alternatives.values())).costs.items():
                costs[name] += value
    return costs


def limits_of(table: Table, seed: int) -> dict[str, float]:
    rng, parent = random.Random(seed), parent_costs(table)
    return {
        "runtime_ms": parent["runtime_ms"] * rng.uniform(0.35, 0.8),
        "memory_mib": parent["memory_mib"] * rng.uniform(0.4, 0.8),
    }


def with_pairs(table: Table, num_pairs: int, seed: int) -> Table:
    """Add pairs between random alternatives of random layers, of both signs."""
    rng, pairs = random.Random(seed), []
    while len(pairs) < num_pairs:
        i, k = sorted(rng.sample(range(len(table.layers)), 2))
        kinds = [rng.choice(list(table.layers[n])) for n in (i, k)]
        names = [rng.choice(list(table.layers[n][s])) for n, s in zip((i, k), kinds, strict=True)]
        size = sum(
            table.layers[n][s][a].score for n, s, a in zip((i, k), kinds, names, strict=True)
        )
        pairs.append(Pair(((i, names[0]), (k, names[1])), rng.uniform(-0.3, 0.6) * size))
    return Table(table.layers, table.fixed, table.units, tuple(pairs))


def timed(table: Table, limits: dict[str, float]) -> tuple[float, Solution]:
    started = time.perf_counter()
    (solution,) = search_table(table, limits)
    return time.perf_counter() - started, solution


def solve_all(instances: list[tuple[Table, dict[str, float]]], label: str) -> dict:
    seconds, proved = [], 0
    for table, limits in instances:
        took, solution = timed(table, limits)
        seconds.append(took)
        proved += solution.proved
    row = {
        "median_s": statistics.median(seconds),
        "worst_s": max(seconds),
        "proved": f"{proved}/{len(instances)}",
    }
    print(f"{label:<44} median {row['median_s']:.2f} s  worst {row['worst_s']:.2f} s  "
          f"proved {row['proved']}")  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seeds = range(options.instances)
    result: dict = {"scipy": scipy.__version__, "machine": platform.machine()}

    blocks = [random_table(s, 80, apart=False) for s in seeds]
    halves = [random_table(s, 80, apart=True) for s in seeds]
    for label, tables in (("80 x 16 blocks", blocks), ("80 x (2 + 8) subblocks", halves)):
        instances = [(t, limits_of(t, s)) for t, s in zip(tables, seeds, strict=True)]
        result[label] = solve_all(instances, label)
    small = [random_table(s, 32, apart=True) for s in seeds]
    for num_pairs in (100, 300):
        instances = [
            (with_pairs(t, num_pairs, s), limits_of(t, s))
            for t, s in zip(small, seeds, strict=True)
        ]
        label = f"32 x (2 + 8) subblocks, {num_pairs} pairs"
        result[label] = solve_all(instances, label)

    for cost in ("runtime_ms", "memory_mib", "params"):
        started = time.perf_counter()
        front = pareto(random_table(0, 32, apart=False), cost, 27)
        took = time.perf_counter() - started
        result[f"front of {cost}"] = {"seconds": took, "points": len(front)}
        print(f"27-point front of {cost}, 32 x 16 blocks{'':<8} {took:.1f} s, "
              f"{len(front)} distinct")  # fmt: skip

    print("\nscore over the optimum, median (lowest-highest) of the instances that a method solves")
    for method in METHODS:
        ratios = []
        for table, limits in ((t, limits_of(t, s)) for t, s in zip(halves, seeds, strict=True)):
            best = search_table(table, limits)[0].score
            try:
                ratios.append(search_by(method, table, limits)[0].score / best)
            except Infeasible:
                continue
        result[method] = {"ratios": ratios}
        low_high = f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else "none"
        median = f"{statistics.median(ratios):.2f}" if ratios else "-"
        print(f"  {method:<12} {median}x ({low_high}), {len(ratios)}/{len(seeds)} solved")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
