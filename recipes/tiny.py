"""The embedded default: no network, no files, a laptop's CPU, minutes.

Generated text trains a tokenizer and a small parent; the parent is compressed to 1.5x decode and
healed; the child is tuned on conversations to reason on demand, then reinforced on problems with
larger numbers and other words than the conversations have. The page at the end shows what was kept,
what it cost, and what reasoning is worth. `fast` is the same at a third of the length.
"""

import os
from dataclasses import replace

from fretsaw.bench.settings import BenchSettings
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import DistillSettings, PretrainSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.pipeline.compression import compression, reasoning
from fretsaw.pipeline.recipe import Stage
from fretsaw.puzzle.settings import (
    AssembleSettings,
    CostSettings,
    FuseSettings,
    RankSettings,
    ScoreSettings,
    SpaceSettings,
)
from fretsaw.rl.settings import RlSettings
from fretsaw.sft.settings import SftSettings
from fretsaw.stage.progress import say
from fretsaw.training.settings import UpdateSettings

SCENARIO = "batch=128,in=64,out=64,dtype=fp32,device=cpu"
BEYOND = "word_problems:steps=1-4,phrasing=both"  # words that tuning never showed


def recipe(
    fast: bool | None = None, target: str = "1.5x decode", fuse: bool = False
) -> list[Stage]:
    """Return the stages; `fast` trains and heals less, and is the default on a single core.

    With `fuse` the search may make one FFN of neighbouring ones without attention between.
    """
    if fast is None:
        fast = (os.cpu_count() or 1) < 2
        say(f"tiny: the {'fast' if fast else 'full'} preset, for {os.cpu_count()} cores")
    pretrain_tokens, heal_tokens = (400_000, 100_000) if fast else (1_600_000, 450_000)
    calibration = 16_384 if fast else 32_768
    percents = (75, 50, 25, 10) if fast else SpaceSettings().ffn_percents
    space = SpaceSettings(ffn_percents=percents, linear=False)  # engines run no linear subblocks
    train = TrainSettings(
        tokens=pretrain_tokens,
        batch_tokens=2048,
        micro_batch_tokens=2048,
        update=UpdateSettings(optimizer="muon", learning_rate=3e-3, min_lr_ratio=0.05),
        heldout_tokens=4096 if fast else 8192,
    )
    healing = replace(train.update, muon_learning_rate=0.01, min_lr_ratio=0.1)
    beyond = "word_problems:steps=1-2,phrasing=both" if fast else BEYOND  # what little it can do
    evaluate = EvalSettings(
        task=f"word_problems + {beyond}", num_problems=100 if fast else 400, tokens=32_768
    )
    compressed = [
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
            score=ScoreSettings(
                repair_tokens=calibration,
                tokens=calibration // 2,
                space=space,
                fused=4 if fuse else 0,
            ),
            assemble=AssembleSettings(tokens=calibration),
            cost=CostSettings(scenario=SCENARIO, rounds=5 if fast else 9, space=space),
            distill=DistillSettings(train=replace(train, tokens=heal_tokens, update=healing)),
            evaluate=evaluate,
            bench=BenchSettings(scenario=SCENARIO, rounds=5 if fast else 9),
            fuse=FuseSettings(repair_tokens=calibration, scenario=SCENARIO) if fuse else None,
        ),
    ]
    return reasoning(
        compressed,
        target=target,
        tune=SftSettings(
            source="world",
            num_rows=1600 if fast else 3000,
            max_value=20,
            seq_len=256,
            batch_tokens=2048,
            micro_batch_tokens=2048,
            update=UpdateSettings(
                optimizer="muon", learning_rate=2e-3, muon_learning_rate=0.01, warmup_ratio=0.1
            ),
        ),
        reinforce=RlSettings(
            task=beyond,
            num_rollouts=5 if fast else 60,
            prompts_per_rollout=32,
            on_share=0.75 if fast else 0.875,
            updates_per_rollout=1,
            max_tokens=80,
            normalise_rewards=False,
            kl_coef=0.0,
            heldout_problems=50 if fast else 200,
            update=UpdateSettings(learning_rate=2e-4, beta2=0.98, weight_decay=0.0),
        ),
        evaluate=evaluate,
    )
