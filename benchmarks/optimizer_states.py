"""Healing with lean optimizer states against fp32: is the loss within the spread of fp32's seeds?

A small parent is trained on generated text; a child with half its FFN channels heals with each kind
of states, five data orders each, paired. Printed: the held-out KL's mean and spread over the seeds,
the mean paired difference from fp32 with its standard error, and the bytes of the moments.

    python benchmarks/optimizer_states.py [--seeds 5] [--tokens 65536] [--kinds ...] [--out FILE]
"""

import argparse
import json
import math
import platform
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.corpus.build import build
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import DistillSettings, PretrainSettings, TrainSettings
from fretsaw.distill.train import distill, pretrain
from fretsaw.model.decoder import Decoder
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import Progress, say
from fretsaw.training.settings import LoraSettings, UpdateSettings
from fretsaw.training.step_memory import trained_bytes

PLAIN = UpdateSettings(learning_rate=2e-3)
KINDS = {
    "fp32": PLAIN,
    "states bf16": replace(PLAIN, states="bf16"),
    "states int8": replace(PLAIN, states="int8"),
    "master bf16": replace(PLAIN, master="bf16"),
    "all bf16": replace(PLAIN, states="bf16", master="bf16"),
    "int8 + bf16": replace(PLAIN, states="int8", master="bf16"),
}
LOOP = TrainSettings(
    tokens=400_000,
    batch_tokens=1024,
    micro_batch_tokens=1024,
    seq_len=64,
    heldout_tokens=8192,
    update=UpdateSettings(optimizer="muon", learning_rate=3e-3),
)
SHAPE = PretrainSettings(
    num_hidden_layers=4,
    hidden_size=96,
    num_attention_heads=6,
    num_key_value_heads=6,
    intermediate_size=256,
    train=LOOP,
)


def stage(folder: Path, seed: int = 0) -> StageRun:
    folder.mkdir(parents=True)
    return StageRun(folder, seed, "cpu", "fp32", Progress("benchmark"))


def halved(parent: Decoder) -> Decoder:
    """A child with the first half of every FFN's channels."""
    blocks = tuple(
        replace(block, intermediate_size=block.intermediate_size // 2)
        for block in parent.config.blocks
    )
    child = Decoder(replace(parent.config, blocks=blocks))
    own = child.state_dict()
    for name, weight in parent.state_dict().items():
        rows, *columns = own[name].shape
        kept = weight[:rows, : columns[0]] if columns else weight[:rows]
        own[name].copy_(kept)
    return child


def prepare(root: Path) -> dict[str, Path]:
    """Make corpus, parent and child."""
    corpus = CorpusSettings(source="world", max_tokens=300_000, heldout_tokens=16_384, seq_len=64)
    build(corpus, {}, stage(root / "corpus"))
    pretrain(SHAPE, {"corpus": root / "corpus"}, stage(root / "parent"))
    child = halved(checkpoint.load(root / "parent"))
    checkpoint.save(child, root / "child", like=root / "parent")
    return {name: root / name for name in ("corpus", "parent", "child")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kl: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = prepare(Path(folder))
        config = checkpoint.read_config(inputs["child"])
        kinds = dict.fromkeys(("fp32", *arguments.kinds))  # fp32 is what the others stand against
        for kind in kinds:
            update = KINDS[kind]
            settings = DistillSettings(
                keep_best=False, train=replace(LOOP, tokens=arguments.tokens, update=update)
            )
            kl[kind] = []
            for seed in range(arguments.seeds):
                out = Path(folder) / f"{kind} {seed}"
                metrics = distill(settings, inputs, stage(out, seed))
                kl[kind].append(metrics["heldout_kl"])
            say(f"{kind}: {kl[kind]}")
        before = metrics["before_kl"]
    rows = [row(kind, kl, config) for kind in kinds]
    print(f"held-out KL before healing {before:.4f}; {arguments.seeds} seeds, nats a token")
    print(f"{'':<14}{'KL':>9}{'spread':>9}{'- fp32':>10}{'+-':>9}  within  bytes a parameter")
    for one in rows:
        print(
            f"{one['kind']:<14}{one['kl']:>9.5f}{one['spread']:>9.5f}{one['difference']:>10.5f}"
            f"{one['error']:>9.5f}  {one['within']!s:<6}{one['bytes']:>10.2f}"
        )
    if arguments.out:
        about = {"torch": torch.__version__, "cpu": platform.processor(), "seeds": arguments.seeds}
        arguments.out.write_text(json.dumps({"about": about, "kl": kl, "rows": rows}, indent=2))


def row(kind: str, kl: dict[str, list[float]], config: Any) -> dict[str, Any]:
    """Return one kind's figures; `within`: its mean is within the spread of fp32's seeds."""
    own, plain = kl[kind], kl["fp32"]
    differences = [a - b for a, b in zip(own, plain, strict=True)]
    weights, moments = trained_bytes(config, KINDS[kind], LoraSettings())
    num_params = trained_bytes(config, PLAIN, LoraSettings())[0] / 4
    difference = statistics.mean(differences)
    return {
        "kind": kind,
        "kl": statistics.mean(own),
        "spread": statistics.stdev(own),
        "difference": difference,
        "error": statistics.stdev(differences) / math.sqrt(len(differences)),
        "within": difference <= statistics.stdev(plain),
        "bytes": (weights + moments) / num_params,
    }


if __name__ == "__main__":
    main()
