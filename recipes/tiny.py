"""The embedded default: no network, no files, a laptop's CPU, minutes.

Generated text trains a tokenizer and a small parent; the parent is compressed to 1.5x decode and
healed; the page at the end shows what was kept and what it cost. `fast` is the same at a third of
the length.
"""

import os
from dataclasses import replace

from fretsaw.bench.settings import BenchSettings
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import DistillSettings, PretrainSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.progress import say
from fretsaw.puzzle.settings import AssembleSettings, CostSettings, RankSettings, ScoreSettings
from fretsaw.recipe import Stage, compression

SCENARIO = "batch=128,in=64,out=64,dtype=fp32,device=cpu"


def recipe(fast: bool | None = None, target: str = "1.5x decode") -> list[Stage]:
    """Return the stages; `fast` trains and heals less, and is the default on a single core."""
    if fast is None:
        fast = (os.cpu_count() or 1) < 2
        say(f"tiny: the {'fast' if fast else 'full'} preset, for {os.cpu_count()} cores")
    pretrain_tokens, heal_tokens = (400_000, 100_000) if fast else (1_600_000, 450_000)
    calibration = 16_384 if fast else 32_768
    train = TrainSettings(
        tokens=pretrain_tokens,
        batch_tokens=2048,
        micro_batch_tokens=2048,
        optimizer="muon",
        learning_rate=3e-3,
        min_lr_ratio=0.05,
        heldout_tokens=4096 if fast else 8192,
    )
    return [
        Stage(
            "corpus",
            CorpusSettings(
                source="world", max_tokens=pretrain_tokens, heldout_tokens=65_536, vocab_size=512
            ),
        ),
        Stage(
            "pretrain",
            PretrainSettings(train=train),
            {"corpus": "corpus"},
        ),
        *compression(
            parent="pretrain",
            target=target,
            scenario=SCENARIO,
            rank=RankSettings(tokens=calibration),
            score=ScoreSettings(repair_tokens=calibration, tokens=calibration // 2),
            assemble=AssembleSettings(tokens=calibration),
            cost=CostSettings(scenario=SCENARIO, rounds=3 if fast else 5),
            distill=DistillSettings(
                train=replace(train, tokens=heal_tokens, muon_learning_rate=0.01, min_lr_ratio=0.1)
            ),
            evaluate=EvalSettings(
                task="word_problems", num_problems=200 if fast else 600, tokens=32_768
            ),
            bench=BenchSettings(scenario=SCENARIO, rounds=5 if fast else 9),
        ),
    ]
