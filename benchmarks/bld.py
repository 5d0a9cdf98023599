"""Block distillation: what repair and training give each kind of alternative, and from where.

    python benchmarks/bld.py [--run RUN] [--layers 1,4,7] [--tokens 131072] [--questions 1,2]

RUN holds `pretrain`, `corpus` and `rank`, as `fretsaw run tiny` leaves them; without it a parent of
8 layers is trained first. Error is MSE(parent, alternative) / MSE(parent, 0) of the block's output,
KL is replace-1-block; both on held-out rows that chose nothing. Five questions:

1. What do repair and then training do to each alternative?
2. How many tokens does training need from the repaired start, for the error that it reaches from
   the plain slices?
3. Is an attention better trained to match its own half, or the block with the parent's FFN?
4. Should a step train all sizes, or two or one of each kind, drawn at random?
5. Attention and FFN apart or together, at equal tokens?
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.corpus.build import build
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.data import loader
from fretsaw.distill.settings import PretrainSettings, TrainSettings
from fretsaw.distill.train import pretrain
from fretsaw.model.config import BlockConfig
from fretsaw.model.decoder import Block
from fretsaw.model.place import Place
from fretsaw.puzzle.bld.candidates import Candidate, decoupled
from fretsaw.puzzle.bld.distillation import (
    BlockStates,
    block_error,
    distill_layer,
    repair_block,
    states_of,
)
from fretsaw.puzzle.bld.states import Text, Walk
from fretsaw.puzzle.library.ranking import rank, read_orders
from fretsaw.puzzle.library.replay import Replay
from fretsaw.puzzle.library.slices import Trained, alternative, pair_name, sort_parent
from fretsaw.puzzle.settings import BldSettings, RankSettings
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import Progress
from fretsaw.training.settings import UpdateSettings

TEST_ROWS = 64
PAIRS = (("gqa2", "ffn192"), ("gqa1", "ffn96"), ("attn_linear", "ffn96"), ("attn_none", "ffn192"))

Row = dict[str, Any]  # layer, alternative, how, error, kl, seconds


class Bench:
    """A parent, the layers under test, and rows of text that nothing is chosen by."""

    def __init__(self, run: Path, layers: list[int], settings: BldSettings, seed: int):
        self.parent = checkpoint.load(run / "pretrain").requires_grad_(False)
        self.config = self.parent.config
        sort_parent(self.parent, read_orders(run / "rank", self.config.num_hidden_layers))
        self.corpus, self.layers, self.settings, self.seed = run / "corpus", layers, settings, seed
        tokens = loader.read_tokens(run / "corpus/heldout.npy")
        seq = settings.seq_len
        rows = loader.rows(tokens, seq, loader.num_windows(tokens, seq))[-TEST_ROWS:]
        windows = torch.from_numpy(rows)
        self.replay, self.walk = (
            Replay(self.parent, windows, 16),
            Walk(self.parent, windows[:, :-1]),
        )
        self.text = Text(self.parent, self.corpus, settings, seed)
        self.calibrated: tuple[int, list[BlockStates]] = (-1, [])

    def block(self, layer: int) -> Block:
        block = self.parent.model.layers[layer]
        assert isinstance(block, Block)
        return block

    def built(self, layer: int, wanted: BlockConfig, trained: Trained | None = None) -> Block:
        return alternative(self.block(layer), self.config, wanted, layer, trained or {})

    def repaired(self, layer: int, candidate: Candidate) -> Block:
        block = self.built(layer, candidate.wanted)
        if self.calibrated[0] != layer:
            states = states_of(self.block(layer), self.text.calibration.before(layer))
            self.calibrated = layer, states
        _, states = self.calibrated
        repair_block(block, candidate.scope, states, self.text.context, is_trained=False)
        return block

    def train(
        self,
        layer: int,
        candidates: Sequence[Candidate],
        *,
        start: Trained | None = None,
        **how: Any,
    ) -> tuple[Trained, Mapping[str, Mapping[str, Any]], float]:
        """Return trained weights, errors at every stage by alternative, and seconds."""
        settings = replace(self.settings, **how)
        text = Text(self.parent, self.corpus, settings, self.seed)
        text.batch(layer, 0)  # walked there outside the time
        started = time.perf_counter()
        weights, errors = distill_layer(self.parent, layer, candidates, text, settings, start=start)
        seconds = time.perf_counter() - started
        by_name = {name: row for rows in errors.values() for name, row in rows.items()}
        return weights.by_name(), by_name, seconds

    def row(self, layer: int, name: str, how: str, block: Block, seconds: float = 0.0) -> Row:
        """Measure a block in the place of the parent's."""
        frontier = self.walk.before(layer)
        batches = states_of(self.block(layer), frontier)
        error = sum(block_error(block, "block", batches, frontier.context)) / 2
        states = frontier.after([block])
        kl = self.replay.figures(states, Place(layer + 1)).kl.mean().item()
        return {
            **{"layer": layer, "alternative": name, "how": how},
            **{"error": error, "kl": kl, "seconds": seconds},
        }


# --- the questions --------------------------------------------------------------------------------


def what_it_gives(bench: Bench) -> Iterator[Row]:
    """1: plain, repaired, trained."""
    for layer in bench.layers:
        candidates = decoupled(bench.config, bench.settings, layer)
        trained, _, seconds = bench.train(layer, candidates)
        for c in candidates:
            yield bench.row(layer, c.name, "plain", bench.built(layer, c.wanted))
            yield bench.row(layer, c.name, "repaired", bench.repaired(layer, c))
            block = bench.built(layer, c.wanted, trained)
            yield bench.row(layer, c.name, "trained", block, seconds)


def tokens_needed(bench: Bench) -> Iterator[Row]:
    """2: errors before the last refit, from each start, at halved budgets."""
    tokens = bench.settings.tokens
    for layer in bench.layers:
        candidates = decoupled(bench.config, bench.settings, layer)
        runs = {1.0: bench.train(layer, candidates, begin="plain")[1]}
        goals = {c.name: runs[1.0][c.name]["trained"] for c in candidates}
        reached: dict[str, dict[float, float]] = {c.name: {} for c in candidates}
        for share in (1.0, 0.5, 0.25, 0.125):
            _, errors, _ = bench.train(layer, candidates, tokens=int(tokens * share))
            for name, row in errors.items():
                reached[name] |= {0.0: row["repaired"], share: row["trained"]}
        for name, goal in goals.items():
            enough = [share for share, error in sorted(reached[name].items()) if error <= goal]
            yield {
                **{"layer": layer, "alternative": name, "how": "from plain slices", "error": goal},
                **{"reached": reached[name], "share": min(enough, default=None)},
            }


def attention_target(bench: Bench) -> Iterator[Row]:
    """3."""
    for layer in bench.layers:
        candidates = [
            c for c in decoupled(bench.config, bench.settings, layer) if c.scope == "attention"
        ]
        for target in ("subblock", "block"):
            trained, _, seconds = bench.train(layer, candidates, attention_target=target)
            for c in candidates:
                block = bench.built(layer, c.wanted, trained)
                yield bench.row(layer, c.name, target, block, seconds)


def sizes_a_step(bench: Bench) -> Iterator[Row]:
    """4."""
    for layer in bench.layers:
        candidates = decoupled(bench.config, bench.settings, layer)
        for sizes in (0, 2, 1):
            trained, _, seconds = bench.train(layer, candidates, sizes_per_step=sizes)
            for c in candidates:
                block = bench.built(layer, c.wanted, trained)
                yield bench.row(layer, c.name, str(sizes or "all"), block, seconds)


def apart_or_together(bench: Bench) -> Iterator[Row]:
    """5: all tokens apart, all together, or half and half."""
    half = bench.settings.tokens // 2
    for layer in bench.layers:
        candidates = decoupled(bench.config, bench.settings, layer)
        apart, _, seconds = bench.train(layer, candidates)
        first, _, first_seconds = bench.train(layer, candidates, tokens=half)
        for attention, ffn in PAIRS:
            wanted = BlockConfig.from_names(attention, ffn)
            pair = Candidate(pair_name(attention, ffn), "block", wanted)
            together, _, alone = bench.train(layer, [pair])
            then, _, more = bench.train(layer, [pair], start=first, tokens=half)
            for how, trained, spent in (
                ("apart", apart, seconds),
                ("together", together, alone),
                ("apart, then together", then, first_seconds + more),
            ):
                yield bench.row(layer, pair.name, how, bench.built(layer, wanted, trained), spent)


QUESTIONS = (what_it_gives, tokens_needed, attention_target, sizes_a_step, apart_or_together)


# --- the answers ----------------------------------------------------------------------------------


def print_measured(rows: Sequence[Row]) -> None:
    """Print a row per alternative: error and KL each way, geometric means over the layers."""
    ways = list(dict.fromkeys(row["how"] for row in rows))
    print(f"{'':>18}" + "".join(f"{way:>28}" for way in ways))
    print(f"{'':>18}" + f"{'error':>16}{'KL':>12}" * len(ways))
    for name in [*dict.fromkeys(row["alternative"] for row in rows), "all"]:
        line = f"{name:>18}"
        for way in ways:
            chosen = [r for r in rows if r["how"] == way and name in (r["alternative"], "all")]
            error, kl = (geometric_mean(r[key] for r in chosen) for key in ("error", "kl"))
            line += f"{error:>16.3e}{kl:>12.3e}"
        print(line)
    found = {(row["layer"], row["alternative"], row["how"]): row for row in rows}
    for before, after in itertools.pairwise(ways):
        pairs = [
            (row, found[at, name, after]) for (at, name, way), row in found.items() if way == before
        ]
        for key in ("error", "kl"):
            lower = sum(b[key] < a[key] for a, b in pairs)
            higher = sum(b[key] > a[key] for a, b in pairs)
            print(f"  {key}, {after} against {before}: lower {lower}, higher {higher}")
    for way in ways:
        seconds = [row["seconds"] for row in rows if row["how"] == way]
        print(f"  {way}: {sum(seconds) / len(seconds):.1f} s a layer")


def print_shares(rows: Sequence[Row]) -> None:
    """Print the least share of the tokens, of 0, 1/8, 1/4, 1/2 and 1, that is enough."""
    for name in dict.fromkeys(row["alternative"] for row in rows):
        shares = [row["share"] for row in rows if row["alternative"] == name]
        print(f"{name:>18}  " + "  ".join("more" if s is None else f"{s:g}" for s in shares))
    half = sum(row["share"] is not None and row["share"] <= 0.5 for row in rows)
    print(f"  at most half the tokens: {half} of {len(rows)}")


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(max(value, 1e-12)) for value in values]
    return math.exp(sum(logs) / len(logs))


# --- where it runs --------------------------------------------------------------------------------


def small_parent(run: Path) -> Path:
    """Train a parent of 8 layers on generated text; about two minutes."""

    def stage(name: str) -> StageRun:
        (run / name).mkdir()
        return StageRun(run / name, 0, "cpu", "fp32", Progress(name))

    tokens = 400_000
    build(CorpusSettings(source="world", max_tokens=tokens, vocab_size=512), {}, stage("corpus"))
    train = TrainSettings(
        tokens=tokens,
        batch_tokens=2048,
        micro_batch_tokens=2048,
        update=UpdateSettings(optimizer="muon", learning_rate=3e-3, min_lr_ratio=0.05),
    )
    pretrain(PretrainSettings(train=train), {"corpus": run / "corpus"}, stage("pretrain"))
    inputs = {"parent": run / "pretrain", "corpus": run / "corpus"}
    rank(RankSettings(), inputs, stage("rank"))
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--layers", default="1,4,7")
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--questions", default="1,2,3,4,5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    layers = [int(layer) for layer in options.layers.split(",")]
    results: dict[str, Any] = {**vars(options), "out": None, "run": str(options.run)}
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or small_parent(Path(folder))
        bench = Bench(run, layers, BldSettings(tokens=options.tokens), options.seed)
        for number in map(int, options.questions.split(",")):
            question = QUESTIONS[number - 1]
            print(
                f"{number}. {question.__name__}: layers {layers}, {options.tokens} tokens a layer"
            )
            rows = results[question.__name__] = list(question(bench))
            (print_shares if question is tokens_needed else print_measured)(rows)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
