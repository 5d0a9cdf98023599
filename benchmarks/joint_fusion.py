"""A search that knows of fusing against one that does not, at equal predicted latency.

    python benchmarks/joint_fusion.py --out runs/compare

The parent is compare_searches.py's of 24 layers, taken over if it is there. Its spans of up to four
layers are scored, its alternatives timed at batch 1, where fusing saves most. At every target:
"none" fuses nothing; "sequential" searches without spans at ever looser bounds, then chooses for
that child the spans that bring it inside the target, and takes the best sum of scores of all these;
"joint" is one program. Sums of scores are compared, and what was built of them: KL from the parent,
repaired and fused but not healed, and the decode speed-up measured in turn. What is done is kept.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from compare_searches import make, prepare
from fuse_or_remove import Model, kl_from, latencies

SCENARIO = "batch=1,in=64,out=64,dtype=fp32,device=cpu"
MOST = 4  # layers of a span
LOOSER = np.linspace(1.0, 1.4, 21)  # bounds of the first search, as multiples of the target's


def solutions_of(table: Any, limits: dict[str, float]) -> dict[str, Any]:
    """Return each way's best child under the limits; without those that find none."""
    from fretsaw.puzzle.search import Infeasible, search_table

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
    from fretsaw.puzzle.search import write_solutions
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
    print(f"\n{'target':<8}{'way':<12}{'score':>9}{'KL':>9}{'foreseen':>10}{'measured':>10}  fused")
    for row in rows:
        speeds = f"{row['foreseen']:9.3f}x{row['measured']:9.3f}x"
        figures = f"{row['score']:9.4f}{row['kl']:9.4f}{speeds}"
        print(f"{row['target']:<8}{row['way']:<12}{figures}  {' '.join(row['fused'])}")


def main() -> None:
    from fretsaw.puzzle.served import read_served
    from fretsaw.puzzle.settings import CostSettings, ScoreSettings, SpaceSettings

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--pretrain-tokens", type=int, default=1_600_000)
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
    for row, model in zip(rows, models, strict=True):
        row |= {"kl": kls[model.name], "measured": 1 / times[model.name][1]}
    report(rows)
    (root / "joint_fusion.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
