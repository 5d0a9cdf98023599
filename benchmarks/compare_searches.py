"""Puzzle's exact search against other ways to a child of the same speed, healed with equal tokens.

    python benchmarks/compare_searches.py --out runs/compare [--ablate]
    python benchmarks/compare_searches.py --layers 24 --hidden-size 64 --out runs/compare

A parent is trained on the generated world, ranked, scored and timed once. Then, for every target:
the exact search, greedy, uniform shapes, depth, most parameters, random choice, a dense model of
the same predicted speed from random weights, the exact child's shape from random weights, and the
best of three candidates after a short healing, whose tokens count ("chosen"). Each is healed (or
trained) on the same number of tokens with the same seeds, and evaluated on held-out text and
problems. Paired differences have 95 % intervals; a method that finds the exact search's child ties
with it and is not healed again. Finished parts are kept, so the same command goes on.
"""

import argparse
import itertools
import json
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from scipy.stats import t as student

TARGETS = ("1.25x decode", "1.5x decode", "2x decode")
METHODS = ("mip", "greedy", "uniform", "depth", "contiguous", "max_params", "random")
FROM_NOTHING = ("dense", "fresh")  # trained from random weights
CANDIDATES = 3  # of the method "chosen", each healed on a tenth of the tokens, the best on the rest
LOSSES = ("kl", "cosine", "lm", "kl+lm", "kl+cosine+lm")
# Without repair, with whole children's correction, with block distillation, with other losses.
ABLATIONS = ("no repair", "verify", "bld", *LOSSES)
SCENARIO = "batch=128,in=64,out=64,dtype=fp32,device=cpu"
TASK = "word_problems"


def make(kind: str, settings: Any, inputs: dict[str, Path], out: Path, seed: int = 0) -> Path:
    """Run a stage unless its result is there; return its folder."""
    from fretsaw.pipeline.kinds import STAGES
    from fretsaw.stage.artifact import StageRequest
    from fretsaw.stage.execute import execute

    request = StageRequest.of(kind, settings, inputs, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    execute(STAGES[kind].load(), request, settings, out, device="cpu", dtype="fp32")
    return out


def training(tokens: int, *, healing: bool) -> Any:
    from fretsaw.distill.settings import TrainSettings
    from fretsaw.training.settings import UpdateSettings

    update = UpdateSettings(
        optimizer="muon",
        learning_rate=3e-3,
        muon_learning_rate=0.01 if healing else 0.02,
        min_lr_ratio=0.1 if healing else 0.05,
    )
    return TrainSettings(
        tokens=tokens, batch_tokens=2048, micro_batch_tokens=2048, update=update,
        heldout_tokens=8192,
    )  # fmt: skip


def shape(layers: int, hidden_size: int) -> dict[str, Any]:
    """Return the recipe's shape at another depth and width."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
    }


def prepare(root: Path, options: argparse.Namespace, *, is_scored: bool = True) -> dict[str, Path]:
    """Make the parent, its ranking, scores and costs; to ablate, other scores too."""
    from fretsaw.corpus.settings import CorpusSettings
    from fretsaw.distill.settings import PretrainSettings
    from fretsaw.puzzle.settings import (
        BldSettings,
        CostSettings,
        RankSettings,
        ScoreSettings,
        SpaceSettings,
    )

    space = SpaceSettings(linear=False)
    corpus = make(
        "corpus",
        CorpusSettings(source="world", max_tokens=1_600_000, heldout_tokens=65_536, vocab_size=512),
        {},
        root / "corpus",
    )
    parent = make(
        "pretrain",
        PretrainSettings(
            **shape(options.layers, options.hidden_size),
            train=training(options.pretrain_tokens, healing=False),
        ),
        {"corpus": corpus},
        root / "parent",
    )
    made = {"parent": parent, "corpus": corpus}
    made |= {"ranking": make("rank", RankSettings(), made, root / "rank")}
    if not is_scored:
        return made
    scoring = ScoreSettings(space=space)
    timing = CostSettings(scenario=SCENARIO, space=space)
    costs = make("cost", timing, {"parent": parent}, root / "cost")
    scores = make("score", scoring, made, root / "score")
    made |= {"scores": scores, "costs": costs}
    if options.ablate:
        base = {k: made[k] for k in ("parent", "corpus", "ranking")}
        plain = make("score", replace(scoring, repair_tokens=0), base, root / "score-plain")
        library = make("bld", BldSettings(space=space, tokens=131_072), base, root / "bld")
        trained = make("score", scoring, base | {"library": library}, root / "score-bld")
        made |= {"plain": plain, "library": library, "trained": trained}
    return made


def slug(text: str) -> str:
    return text.replace(" ", "-").replace("+", "-")


def child_of(made: dict[str, Path], root: Path, target: str, method: str) -> tuple[Path, dict]:
    """Search and assemble; return the child's folder and the solution."""
    from fretsaw.puzzle.settings import AssembleSettings, SearchSettings, VerifySettings

    if method == "chosen":
        return candidates_of(made, root, target)[0]
    repairs = method != "no repair"
    search_method = method if method in METHODS else "mip"
    at = root / slug(target) / slug(method)
    scores = made[{"no repair": "plain", "bld": "trained"}.get(method, "scores")]
    search = make(
        "search",
        SearchSettings(target=target, method=search_method),
        {"scores": scores, "costs": made["costs"]},
        at / "search",
    )
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking")}
    inputs |= {"library": made["library"]} if method == "bld" else {}
    if method == "verify":
        search = make("verify", VerifySettings(), inputs | {"search": search}, at / "verify")
    solution = json.loads((search / "solutions.json").read_text())[0]
    inputs |= {"search": search}
    return make("assemble", AssembleSettings(repair=repairs), inputs, at / "assemble"), solution


def candidates_of(made: dict[str, Path], root: Path, target: str) -> list[tuple[Path, dict]]:
    """Search and assemble what `--candidates 3` heals briefly."""
    from fretsaw.pipeline.compression import ALPHA, POOL
    from fretsaw.puzzle.settings import AssembleSettings, SearchSettings

    at = root / slug(target) / "chosen"
    settings = SearchSettings(target=target, num_solutions=CANDIDATES, alpha=ALPHA, pool=POOL)
    searched = {k: made[k] for k in ("scores", "costs")}
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking")}
    inputs |= {"search": make("search", settings, searched, at / "search")}
    solutions = json.loads((inputs["search"] / "solutions.json").read_text())
    return [
        (make("assemble", AssembleSettings(solution=i), inputs, at / f"assemble{i}"), solution)
        for i, solution in enumerate(solutions)
    ]


def chosen_child(
    made: dict[str, Path], root: Path, target: str, seed: int, tokens: int
) -> tuple[Path, dict]:
    """Heal the candidates briefly; return the best as it was assembled, and its solution."""
    from fretsaw.distill.settings import DistillSettings
    from fretsaw.puzzle.settings import SelectSettings

    at = root / slug(target) / "chosen"
    found = candidates_of(made, root, target)
    brief = DistillSettings(train=training(tokens, healing=True))
    given = {k: made[k] for k in ("parent", "corpus")}
    inputs = {}
    for i, (child, _) in enumerate(found):
        healed = make("distill", brief, given | {"child": child}, at / f"brief{i}-{seed}", seed)
        inputs |= {f"child{i or ''}": healed, f"assembled{i or ''}": child}
    selected = make("select", SelectSettings(), inputs, at / f"select-{seed}")
    return selected, found[json.loads((selected / "chosen.json").read_text())["candidate"]][1]


def fresh_child(like: Path, out: Path, seed: int) -> Path:
    """Write a checkpoint of random weights in the shape of another."""
    from fretsaw.checkpoint import folder as checkpoint
    from fretsaw.model.decoder import Decoder

    if not (out / "config.json").exists():
        decoder = Decoder(checkpoint.read_config(like))
        decoder.init_weights(seed)
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.write(decoder, out, like=like)
    return out


def dense_shape(made: dict[str, Path], root: Path, target: str) -> tuple[dict[str, Any], float]:
    """Return equal layers with the parent's attention, as slow as the target allows; their time.

    Of depth and FFN width, both as they were timed, what comes nearest to the bound is taken.
    """
    from fretsaw.checkpoint.folder import read_config

    forecast = json.loads((root / slug(target) / "mip/search/forecast.json").read_text())
    costs = json.loads((made["costs"] / "costs.json").read_text())
    config = read_config(made["parent"])
    ms = {name: entry["decode_ms"] for name, entry in costs["alternatives"].items()}
    widths = [int(name[3:]) for name in ms if name.startswith("ffn") and name[3:].isdigit()]
    attention = ms[config.blocks[0].attention_name]
    times = {
        (layers, width): costs["fixed"]["decode_ms"] + layers * (attention + ms[f"ffn{width}"])
        for layers in range(1, config.num_hidden_layers + 1)
        for width in widths
    }
    bound = forecast["bounds"]["decode_ms"]
    layers, width = max((k for k in times if times[k] <= bound), key=lambda k: times[k])
    found = shape(layers, config.hidden_size) | {"intermediate_size": width}
    return found, times[layers, width]


def run_one(
    made: dict[str, Path], root: Path, target: str, method: str, seed: int, tokens: int
) -> dict[str, Any]:
    """Make one child, heal it, evaluate it; return its figures."""
    import torch

    from fretsaw.distill.settings import DistillSettings, PretrainSettings
    from fretsaw.eval.settings import EvalSettings

    torch.set_num_threads(1)
    at = root / slug(target) / slug(method)
    weights: dict[str, Any] = {"kl_weight": 1.0, "cosine_weight": 1.0, "lm_weight": 0.0}
    if method in LOSSES:
        terms = method.split("+")
        weights = {f"{term}_weight": float(term in terms) for term in ("kl", "cosine", "lm")}
    train = training(tokens, healing=method not in FROM_NOTHING)
    solution: dict[str, Any] = {"choices": None, "score": None, "costs": {}}
    healed = at / f"healed-{seed}"
    if method == "dense":
        found, decode_ms = dense_shape(made, root, target)
        settings = PretrainSettings(**found, train=train)
        make("pretrain", settings, {"corpus": made["corpus"]}, healed, seed)
        solution["costs"] = {"decode_ms": decode_ms}
    else:
        child, solution = child_of(made, root, target, method if method != "fresh" else "mip")
        if method == "chosen":
            child, solution = chosen_child(made, root, target, seed, tokens // 10)
            train = replace(train, tokens=tokens - CANDIDATES * (tokens // 10))
        if method == "fresh":
            child = fresh_child(child, at / f"random-{seed}", seed)
        inputs = {"child": child, "parent": made["parent"], "corpus": made["corpus"]}
        make("distill", DistillSettings(train=train, **weights), inputs, healed, seed)
    inputs = {"model": healed, "parent": made["parent"], "corpus": made["corpus"]}
    settings = EvalSettings(task=TASK, num_problems=200, tokens=32_768)
    evaluated = make("eval", settings, inputs, at / f"eval-{seed}")
    results = json.loads((evaluated / "results.json").read_text())
    task = results["tasks"][TASK]
    return {
        **{"target": target, "method": method, "seed": seed, "kl": results["kl"]},
        **{"loss": results["child_loss"], "accuracy": task["child"]["on"]["accuracy"]},
        "parent_accuracy": task["parent"]["on"]["accuracy"],
        "decode_ms": solution["costs"].get("decode_ms"),
        "choices": solution["choices"],
        "score": solution["score"],
    }


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval over paired seeds."""
    mean, n = statistics.mean(differences), len(differences)
    if n < 2:
        return mean, float("-inf"), float("inf")
    half = student.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5
    return mean, mean - half, mean + half


def show(rows: list[dict], targets: list[str], methods: list[str]) -> list[dict]:
    """Print means by target and method, and who is ahead of whom."""
    table = []
    for target in targets:
        own = {m: sorted((r for r in rows if r["target"] == target and r["method"] == m),
                         key=lambda r: r["seed"]) for m in methods}  # fmt: skip
        if not own.get("mip"):
            continue
        parent = own["mip"][0]["parent_accuracy"]
        print(f"\n{target}: parent's accuracy {parent:.1%}")
        print(f"{'method':14} {'KL':>8} {'accuracy':>9} {'kept':>7}   KL less the exact search's")
        for method, found in own.items():
            if not found:
                continue
            kl = statistics.mean(r["kl"] for r in found)
            accuracy = statistics.mean(r["accuracy"] for r in found)
            verdict, difference = "", None
            if method != "mip":
                pairs = list(zip(found, own["mip"], strict=False))
                mean, low, high = interval([a["kl"] - b["kl"] for a, b in pairs])
                same = found[0]["choices"] == own["mip"][0]["choices"] and method in METHODS
                ahead = "tie, the same child" if same else "exact ahead" if low > 0 else (
                    f"{method} ahead" if high < 0 else "not told apart")  # fmt: skip
                verdict = f"{mean:+.4f} ({low:+.4f} to {high:+.4f}) {ahead}"
                difference = [mean, low, high]
            kept = accuracy / parent if parent else float("nan")
            print(f"{method:14} {kl:8.4f} {accuracy:9.1%} {kept:7.1%}   {verdict}")
            table.append({"target": target, "method": method, "kl": kl, "accuracy": accuracy,
                          "kept": kept, "difference": difference, "verdict": verdict})  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--pretrain-tokens", type=int, default=1_600_000)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--methods", nargs="+", default=[*METHODS, "chosen", *FROM_NOTHING])
    parser.add_argument("--ablate", action="store_true", help="repair and loss terms instead")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    from fretsaw.puzzle.search.explain import Infeasible

    root = options.out / f"layers-{options.layers}"
    made = prepare(root, options)
    methods = ["mip", *ABLATIONS] if options.ablate else options.methods
    choices = {}  # searched and assembled before the workers share them
    for target, method in itertools.product(options.targets, methods):
        if method not in FROM_NOTHING:
            try:
                choices[target, method] = child_of(made, root, target, method)[1]["choices"]
            except Infeasible:
                print(f"{target}: {method} finds nothing under the same bounds")
    twins = [
        (target, method)
        for (target, method), own in choices.items()
        if method in METHODS[1:] and own == choices.get((target, "mip"))
    ]
    jobs = [
        (target, method, seed)
        for seed in range(options.seeds)
        for target in options.targets
        for method in methods
        if (target, method) in choices or method in FROM_NOTHING
        if (target, method) not in twins
    ]
    rows = []
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_one, made, root, *job, options.tokens) for job in jobs]
        for job, future in zip(jobs, futures, strict=True):
            rows.append(future.result())
            print(job, f"KL {rows[-1]['kl']:.4f}, accuracy {rows[-1]['accuracy']:.1%}", flush=True)
    rows += [
        {**row, "method": method}
        for target, method in twins
        for row in rows
        if row["target"] == target and row["method"] == "mip"
    ]
    table = show(rows, options.targets, methods)
    name = "ablations.json" if options.ablate else "comparison.json"
    (root / name).write_text(json.dumps({"rows": rows, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
