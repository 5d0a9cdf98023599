"""A search that knows of fusing against one that does not, at equal predicted latency.

    python benchmarks/joint_fusion.py --out runs/compare

The parent is compare_searches.py's of 24 layers, taken over if it is there. Its spans of up to four
layers are scored, its alternatives timed at batch 1, where fusing saves most. At every target:
"none" fuses nothing; "sequential" searches without spans at ever looser bounds, then chooses for
that child the spans that bring it inside the target, and takes the best sum of scores of all these;
"joint" is one program. Sums of scores are compared, and what was built of them: KL from the parent,
repaired and fused, then healed on equal tokens, and the decode speed-up measured in turn. Ways that
come to one child tie, and are healed once. What is done is kept.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from compare_searches import interval, make, prepare
from fuse_or_remove import Model, healed_kl, kl_from, latencies

SCENARIO = "batch=1,in=64,out=64,dtype=fp32,device=cpu"
MOST = 4  # layers of a span
LOOSER = np.linspace(1.0, 1.4, 21)  # bounds of the first search, as multiples of the target's


def solutions_of(table: Any, limits: dict[str, float]) -> dict[str, Any]:
    """Return each way's best child under the limits; without those that find none."""
    from fretsaw.puzzle.search.solutions import Infeasible, search_table

    def solve(table: Any, limits: dict[str, float]) -> Any:
        try:
            return search_table(table, limits)[0]
        except Infeasible:
            return None

    apart = replace(table, spans=())
    (name, bound), best = next(iter(limits.items())), None
    for factor in LOOSER:
        child = solve(apart, {name: bound * factor})
        if child is None:
            continue
        layers = tuple(
            {kind: {n: layer[kind][n]} for kind, n in zip(("attention", "ffn"), names, strict=True)}
            for layer, names in zip(table.layers, child.choices, strict=True)
        )
        fused = solve(replace(table, layers=layers), limits)
        best = min(filter(None, (best, fused)), key=lambda one: one.score, default=None)
    found = {"none": solve(apart, limits), "sequential": best, "joint": solve(table, limits)}
    return {way: one for way, one in found.items() if one is not None}


def built(solution: Any, made: dict[str, Path], at: Path) -> Path:
    """Assemble and fuse a solution; return the checkpoint's folder."""
    from fretsaw.puzzle.search.solutions import write_solutions
    from fretsaw.puzzle.settings import AssembleSettings, FuseSettings

    (at / "search").mkdir(parents=True, exist_ok=True)
    write_solutions(at / "search/solutions.json", [solution])
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking")} | {"search": at / "search"}
    child = make("assemble", AssembleSettings(), inputs, at / "assemble")
    given = {"model": child, "corpus": made["corpus"], "search": at / "search"}
    settings = FuseSettings(dependency_tokens=0, scenario=SCENARIO, rounds=3)
    return make("fuse", settings, given, at / "fuse")


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print what each way came to, and which is ahead."""
    names = f"{'score':>9}{'KL':>9}{'healed':>9}{'foreseen':>10}{'measured':>10}"
    print(f"\n{'target':<8}{'way':<12}{names}  fused")
    for row in rows:
        speeds = f"{row['foreseen']:9.3f}x{row['measured']:9.3f}x"
        healed = statistics.mean(row["healed"])
        figures = f"{row['score']:9.4f}{row['kl']:9.4f}{healed:9.4f}{speeds}"
        print(f"{row['target']:<8}{row['way']:<12}{figures}  {' '.join(row['fused'])}")
    for joint in (row for row in rows if row["way"] == "joint"):
        for row in rows:
            if row["target"] == joint["target"] and row is not joint:
                pairs = zip(row["healed"], joint["healed"], strict=True)
                mean, low, high = interval([other - own for other, own in pairs])
                print(f"{row['target']} healed, {row['way']} less joint: {mean:+.4f} "
                      f"({low:+.4f} to {high:+.4f})")  # fmt: skip


def healed(
    models: Sequence[Model], made: dict[str, Path], root: Path, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Return every model's KL after healing, by seed."""
    from fretsaw.checkpoint.beside import read_layers
    from fretsaw.checkpoint.folder import read_config

    def child(model: Model) -> Any:
        return model.name.split()[0], read_config(model.folder).blocks, read_layers(model.folder)

    twins: dict[Any, Model] = {}
    for model in models:
        twins.setdefault(child(model), model)
    jobs = [
        (model, made["parent"], made["corpus"], options.tokens, seed, root)
        for seed in range(options.seeds)
        for model in twins.values()
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        kls = list(pool.map(healed_kl, jobs))
    found: dict[str, list[float]] = {}
    for (model, *_), kl in zip(jobs, kls, strict=True):
        found.setdefault(model.name, []).append(kl)
    return {model.name: found[twins[child(model)].name] for model in models}


def main() -> None:
    from fretsaw.puzzle.search.bounds import read_served
    from fretsaw.puzzle.settings import CostSettings, ScoreSettings, SpaceSettings

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--pretrain-tokens", type=int, default=1_600_000)
    parser.add_argument("--tokens", type=int, default=200_000, help="of healing")
    parser.add_argument("--seeds", type=int, default=3, help="of healing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--targets", type=float, nargs="+", default=[1.25, 1.5, 1.75, 2.0, 2.5])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    options.ablate = False
    made = prepare(options.out / f"layers-{options.layers}", options, is_scored=False)
    root = options.out / f"joint-{options.layers}"
    space = SpaceSettings(linear=False)
    timing = CostSettings(scenario=SCENARIO, space=space)
    costs = make("cost", timing, {"parent": made["parent"]}, root / "cost")
    scoring = ScoreSettings(space=space, fused=MOST, joint_pairs=0)
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking")}
    scores = make("score", scoring, inputs, root / "score")
    (served,) = read_served(
        json.loads((scores / "scores.json").read_text()),
        json.loads((costs / "costs.json").read_text()),
    )
    parent_ms = served.parent["decode_ms"]
    rows, models = [], []
    for target in options.targets:
        found = solutions_of(served.table, {"decode_ms": parent_ms / target})
        for way, solution in found.items():
            folder = built(solution, made, root / f"{target}x-{way}")
            models.append(Model(f"{target}x {way}", "fused", folder))
            rows.append({"target": f"{target}x", "way": way, "score": solution.score,
                         "fused": list(solution.fused),
                         "foreseen": parent_ms / solution.costs["decode_ms"]})  # fmt: skip
    kls = kl_from(made["parent"], models, made["corpus"])
    times = latencies(made["parent"], models)
    after = healed(models, made, root, options)
    for row, model in zip(rows, models, strict=True):
        row |= {"kl": kls[model.name], "measured": 1 / times[model.name][1]}
        row |= {"healed": after[model.name]}
    report(rows)
    (root / "joint_fusion.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
