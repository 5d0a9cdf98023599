"""Fewer weights, or fewer bits of them: children of equal memory, and the parent in 8 bits.

    python benchmarks/precision.py --run runs/tiny --out runs/precision       (after `make demo`)

Every alternative of the demo's parent is scored in full precision and in 8 bits. The parent in FP8
and in int8 stands as it is; then children are searched for shares of the parent's memory at a
scenario: without the choice of precision, with everything in FP8, and with the choice for every
subblock. Each child is assembled, then healed in full precision, with paired seeds; the KL from the
parent is of what would be served, with its matrices in 8 bits where chosen. What is done is kept.
`--products` times one wide matrix in int8 against float32 instead: as integers, as floats, and as
torch's own loop does it.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compare_searches import interval, make, training

SCENARIO = "batch=1,in=64,out=64,dtype=bf16,device=cpu"


def tables(root: Path, made: dict[str, Path]) -> dict[str, Any]:
    """Return the search's table by what it may choose of: full precision, FP8, any."""
    from fretsaw.puzzle.search.bounds import read_served
    from fretsaw.puzzle.settings import CostSettings, ScoreSettings, SpaceSettings

    space = SpaceSettings(linear=False, precisions=("fp8", "int8"))
    timing = CostSettings(scenario=SCENARIO, space=space, engine="roofline")
    costs = make("cost", timing, {"parent": made["parent"]}, root / "cost")
    scores = make("score", ScoreSettings(space=space, joint_pairs=0), made, root / "score")
    (served,) = read_served(
        json.loads((scores / "scores.json").read_text()),
        json.loads((costs / "costs.json").read_text()),
    )

    def only(is_taken: Callable[[str], bool]) -> Any:
        layers = tuple(
            {k: {n: a for n, a in of.items() if is_taken(n)} for k, of in layer.items()}
            for layer in served.table.layers
        )
        return replace(served.table, layers=layers)

    return {
        "parent": served.parent,
        "full": only(lambda name: "@" not in name),
        "fp8": only(lambda name: "@fp8" in name or name.endswith("_none")),
        "chosen": served.table,
    }


def kl_served(made: dict[str, Path], folder: Path, weights: Any = None) -> float:
    """Return the KL from the parent of a checkpoint as it would be served, on held-out text."""
    import torch

    from fretsaw.checkpoint import folder as checkpoint
    from fretsaw.data import loader
    from fretsaw.puzzle.library.replay import Replay

    rows = loader.first_rows(made["corpus"] / "heldout.npy", 256, 32_768)
    with torch.inference_mode():
        replay = Replay(checkpoint.load(made["parent"]), torch.from_numpy(rows), 16)
        served = checkpoint.load_served(folder, weights=weights)
        return replay.figures_of(served).kl.mean().item()


def built(
    solution: Any, made: dict[str, Path], at: Path, heal_tokens: int, seeds: int
) -> tuple[float, list[float]]:
    """Assemble and heal a solution; return its KL before and after, by seed."""
    from fretsaw.distill.settings import DistillSettings
    from fretsaw.puzzle.search.solutions import write_solutions
    from fretsaw.puzzle.settings import AssembleSettings

    (at / "search").mkdir(parents=True, exist_ok=True)
    write_solutions(at / "search/solutions.json", [solution])
    child = make("assemble", AssembleSettings(), {**made, "search": at / "search"}, at / "assemble")
    given = {"child": child, "parent": made["parent"], "corpus": made["corpus"]}
    settings = DistillSettings(train=training(heal_tokens, healing=True))
    healed = [
        make("distill", settings, given, at / f"distill-{seed}", seed) for seed in range(seeds)
    ]
    return kl_served(made, child), [kl_served(made, folder) for folder in healed]


def products() -> None:
    """Print the time of an int8 product over that of a packed float32 one, by rows and by way.

    Codes as floats is what a CPU without VNNI does; torch's own loop is what it would do.
    """
    import time

    import torch

    from fretsaw.engine.weights import FloatCodesMatrix, Matrix, QuantisedMatrix
    from fretsaw.model.linear import quantise_rows

    weight = torch.randn(4096, 1024)
    codes, scales = quantise_rows(weight, "int8")
    full, integers = Matrix(weight), QuantisedMatrix(codes, scales)
    floats = FloatCodesMatrix(codes, scales)

    def seconds(once: Callable[[], Any], times: int = 20) -> float:
        started = time.perf_counter()
        for _ in range(times):
            once()
        return (time.perf_counter() - started) / times

    def loop(x: torch.Tensor) -> None:
        with torch.backends.mkldnn.flags(enabled=False):
            torch._int_mm(x, codes.t())

    for rows in (1, 8, 32, 128):
        x = torch.randn(rows, 1024)
        rounded = quantise_rows(x, "int8")[0]
        ways: dict[str, tuple[Callable[[], Any], int]] = {
            "integers": (lambda: torch._int_mm(rounded, codes.t()), 20),  # noqa: B023
            "with rounding": (lambda: integers(x), 20),  # noqa: B023
            "codes as floats": (lambda: floats(x), 20),  # noqa: B023
            "floats at every call": (lambda: rounded.float() @ codes.float().t(), 5),  # noqa: B023
            "torch's loop": (lambda: loop(rounded), 1),  # noqa: B023
        }
        ratios: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(9):
            one = seconds(lambda: full(x))  # noqa: B023
            for name, (way, times) in ways.items():
                ratios[name].append(seconds(way, times) / one)
        told = (f"{name} {statistics.median(found):.2f}" for name, found in ratios.items())
        print(f"{rows:>4} rows by 1024 x 4096, of float32: {', '.join(told)}")


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print what each way came to."""
    print(f"{'memory':>8}  {'':<14}{'params':>8}{'in 8 bits':>11}{'KL':>10}{'healed':>10}")
    for row in rows:
        figures = f"{row['memory']:>8.1%}  {row['way']:<14}{row['params']:>8.1%}"
        healed = f"{statistics.mean(row['healed']):>10.5f}" if row["healed"] else ""
        print(f"{figures}{row['in_8_bits']:>11.0%}{row['kl']:>10.5f}{healed}")
    for full in (row for row in rows if row["way"] == "full" and row["healed"]):
        for row in rows:
            if row["share"] == full["share"] and row is not full:
                pairs = zip(full["healed"], row["healed"], strict=True)
                mean, low, high = interval([other - own for other, own in pairs])
                print(f"{row['share']:.0%} healed, full less {row['way']}: {mean:+.5f} "
                      f"({low:+.5f} to {high:+.5f})")  # fmt: skip


def main() -> None:
    from fretsaw.checkpoint.folder import read_config
    from fretsaw.model.quantised import everywhere
    from fretsaw.puzzle.search.solutions import Infeasible, search_table

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.55, 0.45, 0.35, 0.25])
    parser.add_argument("--heal-tokens", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=3, help="of healing; 0: it is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--products", action="store_true")
    options = parser.parse_args()
    if options.products:
        return products()
    names = {"parent": "pretrain", "corpus": "corpus", "ranking": "rank"}
    made = {key: options.run / stage for key, stage in names.items()}
    by_way = tables(options.out, made)
    parent = by_way.pop("parent")
    rows: list[dict[str, Any]] = []

    def add(
        way: str, share: float, choices: Sequence[Any], costs: dict[str, float], kl: float,
        healed: Sequence[float],
    ) -> None:  # fmt: skip
        there = [name for pair in choices for name in pair if not name.endswith("_none")]
        named = {"memory": "memory_mib", "params": "params"}
        shares = {key: costs[cost] / parent[cost] for key, cost in named.items()}
        in_8_bits = sum("@" in name for name in there) / len(there)
        rows.append({"way": way, "share": share, **shares, "in_8_bits": in_8_bits, "kl": kl,
                     "healed": healed})  # fmt: skip

    config = read_config(made["parent"])
    for precision in ("fp8", "int8"):
        choices = [(b.attention_name, b.ffn_name) for b in everywhere(config, precision)]
        table = by_way["chosen"]
        costs = {
            cost: table.fixed[cost]
            + sum(layer["attention"][a].costs[cost] + layer["ffn"][f].costs[cost]
                  for layer, (a, f) in zip(table.layers, choices, strict=True))
            for cost in table.cost_names
        }  # fmt: skip
        kl = kl_served(made, made["parent"], precision)
        add(f"parent, {precision}", 1.0, choices, costs, kl, [])
    for share in options.shares:
        for way, table in by_way.items():
            try:
                solution = search_table(table, {"memory_mib": share * parent["memory_mib"]})[0]
            except Infeasible:
                continue
            at = options.out / f"{share}-{way}"
            figures = built(solution, made, at, options.heal_tokens, options.seeds)
            add(way, share, solution.choices, solution.costs, *figures)
    report(rows)
    (options.out / "precision.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
