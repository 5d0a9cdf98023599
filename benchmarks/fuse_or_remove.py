"""Fusing FFNs against removing them, at equal latency, before and after healing.

    python benchmarks/fuse_or_remove.py --out runs/compare

A deep parent is trained on the generated world (compare_searches.py's of 24 layers, taken over if
it is there), the attention of its cheapest neighbouring layers is removed, and the model is healed:
this is the model before fusing. Then ever more of its FFNs are fused, as `fretsaw fuse` chooses
them, or, as the paper did, whole runs but for the last FFN under the last norm, unrepaired. Against
that the same FFNs are removed but for the most missed of each group, and ever more FFNs of any
layer, the least missed first; the rest is repaired. All are timed in turn at batch 1 and 64, and
healed on the same tokens from the same teacher, three seeds. Which is ahead is read off at the
fused model's latency, between two removals, and beside the model without the same FFNs. With
--blocks: whole blocks of the parent in parallel, by the paper's windows of four. What is done is
kept.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from compare_searches import interval, make, prepare, training

ROUNDS = 15
BATCHES = (1, 64)
STEPS = 4  # of ever more fusion
REMOVED = (1, 2, 3, 4, 6, 8)  # FFNs
WINDOW = 4  # blocks in parallel


@dataclass(frozen=True)
class Model:
    """One way to make the model faster, before healing."""

    name: str
    kind: str  # "fused", "paper", "same" FFNs removed, or any "removed"
    folder: Path
    groups: tuple[str, ...] = ()  # that are fused, or of which one FFN each is left


# --- the models -----------------------------------------------------------------------------------


def model_before(made: dict[str, Path], root: Path, options: argparse.Namespace) -> Path:
    """Return the parent without the attention of its cheapest neighbouring layers, healed."""
    from fretsaw.checkpoint.folder import read_config
    from fretsaw.distill.settings import DistillSettings
    from fretsaw.puzzle.settings import AssembleSettings

    scores = json.loads((made["scores"] / "scores.json").read_text())["layers"]
    config, count = read_config(made["parent"]), options.without_attention
    missed = [layer["attention"]["attn_none"]["score"] for layer in scores]
    first = min(
        range(1, config.num_hidden_layers - count + 1), key=lambda i: sum(missed[i : i + count])
    )
    choices = [
        ["attn_none" if first <= i < first + count else block.attention_name, block.ffn_name]
        for i, block in enumerate(config.blocks)
    ]
    bare = solved(choices, root / "bare/search")
    inputs = {k: made[k] for k in ("parent", "corpus", "ranking")} | {"search": bare}
    assembled = make("assemble", AssembleSettings(), inputs, root / "bare/assemble")
    healing = DistillSettings(train=training(options.tokens, healing=True))
    given = {"child": assembled, "parent": made["parent"], "corpus": made["corpus"]}
    print(f"attention of layers {first} to {first + count - 1} is removed")
    return make("distill", healing, given, root / "bare/healed")


def solved(choices: list[list[str]], folder: Path) -> Path:
    """Write a solution as a search does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "solutions.json").write_text(json.dumps([{"score": 0.0, "choices": choices}]))
    return folder


def fused_models(before: Path, corpus: Path, root: Path) -> list[Model]:
    """Return steps of ever more fusion along the exact front, and the paper's way."""
    from fretsaw.puzzle.settings import FuseSettings

    inputs = {"model": before, "corpus": corpus}
    everything = make("fuse", FuseSettings(max_kl=1e9), inputs, root / "fuse-all")
    front = json.loads((everything / "fusion.json").read_text())["front"][1:]
    most = front[-1]["saved_ms"]
    steps = {
        json.dumps(min(front, key=lambda one: abs(one["saved_ms"] - most * (k + 1) / STEPS)))
        for k in range(STEPS)
    }
    models = []
    for one in sorted(map(json.loads, steps), key=lambda one: one["saved_ms"]):
        groups = tuple(one["groups"])
        name = f"fused {' '.join(groups)}"
        folder = root / name.replace(" ", "-")
        settings = FuseSettings(groups=groups, dependency_tokens=0)
        models.append(Model(name, "fused", make("fuse", settings, inputs, folder), groups))
    whole = FuseSettings(rule="paper", norm="last", repair_tokens=0, dependency_tokens=0)
    models.append(Model("paper's rule", "paper", make("fuse", whole, inputs, root / "fused-paper")))
    return models


def removed_models(before: Path, corpus: Path, root: Path, fused: Sequence[Model]) -> list[Model]:
    """Return the model with ever more FFNs removed, the least missed first; and for every fused
    model, the same FFNs removed but for the most missed of each group.
    """
    from fretsaw.checkpoint.folder import read_config
    from fretsaw.puzzle.library.runs import Group
    from fretsaw.puzzle.settings import (
        AssembleSettings,
        RankSettings,
        ScoreSettings,
        SpaceSettings,
    )

    config = read_config(before)
    own = sorted({b.num_key_value_heads for b in config.blocks} - {0})
    space = SpaceSettings(kv_heads=tuple(own), ffn_percents=(), linear=False)
    inputs = {"parent": before, "corpus": corpus}
    inputs["ranking"] = make("rank", RankSettings(), inputs, root / "bare/rank")
    scores = make("score", ScoreSettings(space=space, joint_pairs=0), inputs, root / "bare/score")
    layers = json.loads((scores / "scores.json").read_text())["layers"]
    order = sorted(range(len(layers)), key=lambda i: layers[i]["ffn"]["ffn_none"]["score"])

    def without(gone: set[int], at: Path) -> Path:
        choices = [
            [block.attention_name, "ffn_none" if i in gone else block.ffn_name]
            for i, block in enumerate(config.blocks)
        ]
        search = solved(choices, at / "search")
        return make("assemble", AssembleSettings(), inputs | {"search": search}, at / "assemble")

    models = []
    for count in REMOVED:
        folder = without(set(order[:count]), root / f"removed-{count}")
        models.append(Model(f"{count} removed", "removed", folder))
    for one in fused:
        gone: set[int] = set()
        for text in one.groups:
            members = set(Group.parse(text).layers)
            gone |= members - {max(members, key=order.index)}
        name = f"one left of {' '.join(one.groups)}"
        folder = without(gone, root / name.replace(" ", "-"))
        models.append(Model(name, "same", folder, one.groups))
    return models


# --- figures --------------------------------------------------------------------------------------


def latencies(before: Path, models: Sequence[Model]) -> dict[str, dict[int, float]]:
    """Return each model's decode time over that of the model before, by batch: medians."""
    from fretsaw.checkpoint.folder import read_config
    from fretsaw.puzzle.costs.engine_times import EngineTimes
    from fretsaw.scenario.scenario import Scenario

    config = read_config(before)
    engine = EngineTimes(config, "fp32", "cpu")
    scenarios = {
        batch: Scenario.parse(f"batch={batch},in=64,out=64,dtype=fp32,device=cpu")
        for batch in BATCHES
    }
    blocks = {"before": config.blocks, "again": config.blocks}
    blocks |= {model.name: read_config(model.folder).blocks for model in models}
    rounds: dict[str, dict[int, list[float]]] = {name: {b: [] for b in BATCHES} for name in blocks}
    for i in range(ROUNDS):
        for name, own in blocks.items():
            with engine.open(name, own) as time:
                for batch, scenario in scenarios.items():
                    rounds[name][batch].append(time(scenario, i)["decode_ms"])
    return {
        name: {
            b: statistics.median(np.array(times[b]) / np.array(rounds["before"][b]))
            for b in BATCHES
        }
        for name, times in rounds.items()
    }


def kl_from(before: Path, models: Sequence[Model], corpus: Path) -> dict[str, float]:
    """Return each model's KL from the model before, on held-out text."""
    import torch

    from fretsaw.checkpoint import folder as checkpoint
    from fretsaw.data import loader
    from fretsaw.puzzle.library.replay import Replay

    windows = torch.from_numpy(loader.first_rows(corpus / "heldout.npy", 256, 32_768))
    with torch.inference_mode():
        replay = Replay(checkpoint.load(before), windows, 16)
        return {
            m.name: replay.figures_of(checkpoint.load(m.folder)).kl.mean().item() for m in models
        }


def healed_kl(job: tuple[Model, Path, Path, int, int, Path]) -> float:
    """Heal a model from the one before; return its KL on held-out text."""
    import torch

    from fretsaw.distill.settings import DistillSettings

    torch.set_num_threads(1)
    model, before, corpus, tokens, seed, root = job
    out = root / "healed" / f"{model.folder.relative_to(root).parts[0]}-{seed}"
    inputs = {"child": model.folder, "parent": before, "corpus": corpus}
    healing = DistillSettings(train=training(tokens, healing=True))
    make("distill", healing, inputs, out, seed)
    return kl_from(before, [Model(model.name, model.kind, out)], corpus)[model.name]


def at_latency(
    latency: float, times: dict[str, dict[int, float]], batch: int, kls: dict[str, float]
) -> float | None:
    """Return what removing FFNs costs at a latency, between two removals; None out of reach."""
    points = sorted([(1.0, 0.0), *((times[name][batch], kl) for name, kl in kls.items())])
    if latency < points[0][0]:
        return None
    return float(np.interp(latency, [x for x, _ in points], [y for _, y in points]))


def verdict(own: Sequence[float], other: Sequence[float | None]) -> str:
    """Say which is ahead: the fused model or removal at its latency, seed by seed."""
    pairs = [(a, b) for a, b in zip(own, other, strict=True) if b is not None]
    if len(pairs) < len(own):
        return "faster than any removal here"
    mean, low, high = interval([b - a for a, b in pairs])
    ahead = "fusing ahead" if low > 0 else "removing ahead" if high < 0 else "not told apart"
    removing = statistics.mean(b for _, b in pairs)
    return f"removing {removing:.4f} ({mean:+.4f}, {low:+.4f} to {high:+.4f}), {ahead}"


# --- whole blocks in parallel ---------------------------------------------------------------------


def parallel_blocks(made: dict[str, Path]) -> list[dict[str, Any]]:
    """Print the KL of ever more windows of whole blocks that read the same input.

    Windows of four with the least largest dependency within (ties: the least sum), those that
    overlap a taken one left out (FFN Fusion, section on parallel blocks).
    """
    import torch

    from fretsaw.checkpoint import folder as checkpoint
    from fretsaw.data import loader
    from fretsaw.model.place import Place
    from fretsaw.puzzle.fuse.dependency import block_dependency
    from fretsaw.puzzle.library.replay import Replay

    parent = checkpoint.load(made["parent"])
    windows = torch.from_numpy(loader.first_rows(made["corpus"] / "heldout.npy", 256, 16_384))
    layers, context = parent.model.layers, parent.context(1, 256)

    def states(rows: Any, taken: list[int]) -> Any:
        """Return the last hidden states with the taken windows' blocks side by side."""
        x, at = parent.model.embed_tokens(rows), 0
        while at < len(layers):
            window = range(at, at + (WINDOW if at in taken else 1))
            x = x + sum(layers[i](x, context) - x for i in window)
            at = window.stop
        return x

    found = []
    with torch.inference_mode():
        matrix = block_dependency(parent, windows[:16, :-1], 16).tolist()
        within = {
            i: [matrix[a][b] for a in range(i, i + WINDOW) for b in range(a + 1, i + WINDOW)]
            for i in range(len(layers) - WINDOW + 1)
        }
        left = sorted(within, key=lambda i: (max(within[i]), sum(within[i])))
        taken: list[int] = []
        replay = Replay(parent, windows, 16)
        while left and len(taken) < 4:
            taken.append(left[0])
            left = [i for i in left if abs(i - taken[-1]) >= WINDOW]
            whole = torch.cat([states(rows, taken) for rows in windows[:, :-1].split(16)])
            kl = replay.figures(whole, Place(len(layers))).kl.mean().item()
            names = [f"{i}-{i + WINDOW - 1}" for i in taken]
            largest = max(within[taken[-1]])
            print(f"blocks {', '.join(names)} in parallel: KL {kl:.4f} (largest dependency within "
                  f"the last window {largest:.4f})")  # fmt: skip
            found.append({"windows": names, "largest_dependency": largest, "kl": kl})
    return found


# --- all of it ------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--without-attention", type=int, default=12, help="layers")
    parser.add_argument("--pretrain-tokens", type=int, default=1_600_000)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--blocks", action="store_true", help="whole blocks in parallel instead")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    options.ablate = False
    base = options.out / f"layers-{options.layers}"
    made = prepare(base, options)
    if options.blocks:
        (base / "parallel.json").write_text(json.dumps(parallel_blocks(made), indent=1))
        return
    root = options.out / f"fusion-{options.layers}"
    before = model_before(made, root, options)
    fused = fused_models(before, made["corpus"], root)
    models = [*fused, *removed_models(before, made["corpus"], root, fused[:-1])]
    timed = root / "latencies.json"
    if not timed.is_file() or not {m.name for m in models} <= json.loads(timed.read_text()).keys():
        found = latencies(before, models)
        timed.write_text(json.dumps(found, indent=1))
    times = {
        name: {int(batch): ratio for batch, ratio in row.items()}
        for name, row in json.loads(timed.read_text()).items()
    }
    plain = kl_from(before, models, made["corpus"])
    jobs = [
        (model, before, made["corpus"], options.tokens, seed, root)
        for seed in range(options.seeds)
        for model in models
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        kls = list(pool.map(healed_kl, jobs))
    healed = {m.name: [k for k, j in zip(kls, jobs, strict=True) if j[0] == m] for m in models}
    noise = {batch: abs(times["again"][batch] - 1) for batch in BATCHES}
    print(f"\nnoise of a latency: {', '.join(f'batch {b} {n:.1%}' for b, n in noise.items())}")
    print(f"{'model':34} {'batch 1':>8} {'batch 64':>9} {'KL before':>10} {'KL healed':>10}")
    for m in models:
        print(f"{m.name:34} {times[m.name][1]:8.3f} {times[m.name][64]:9.3f} {plain[m.name]:10.4f} "
              f"{statistics.mean(healed[m.name]):10.4f}")  # fmt: skip
    removed = [m.name for m in models if m.kind == "removed"]
    result = []
    same = {m.groups: m.name for m in models if m.kind == "same"}
    for m in (m for m in models if m.kind in ("fused", "paper")):
        print(f"\n{m.name}:")
        if (other := same.get(m.groups)) is not None:
            words = verdict(healed[m.name], list(healed[other]))
            ratios = ", ".join(f"batch {b} {times[other][b]:.3f}" for b in BATCHES)
            print(
                f"  the same removed but one ({ratios} of the time): before healing "
                f"{plain[other]:.4f}, healed {words}"
            )
        for batch in BATCHES:
            latency = times[m.name][batch]
            now = at_latency(latency, times, batch, {n: plain[n] for n in removed})
            said = "out of reach" if now is None else f"{now:.4f}"
            later = [
                at_latency(latency, times, batch, {n: healed[n][seed] for n in removed})
                for seed in range(options.seeds)
            ]
            words = verdict(healed[m.name], later)
            print(
                f"  batch {batch} at {latency:.3f} of the time: before healing {plain[m.name]:.4f}"
                f", removing {said}; healed {statistics.mean(healed[m.name]):.4f}, {words}"
            )
            result.append({"model": m.name, "batch": batch, "latency": latency, "verdict": words,
                           "kl": plain[m.name], "removing": now, "healed": healed[m.name],
                           "removing_healed": later})  # fmt: skip
    summary = {"times": times, "before_healing": plain, "healed": healed, "verdicts": result}
    (root / "fuse_or_remove.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
