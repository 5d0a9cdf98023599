"""Llama-3_1-Nemotron-Ultra-253B-v1 as data, and the stages that would make such a child.

    fretsaw plan ln_ultra                                    # what fits, how fast: beside the paper
    fretsaw run ln_ultra --out RUN --arg data=TEXT [--arg conversations=ROWS] --dry-run

The blocks are those of the published config: 162 entries, of which 81 are empty so that 18 pipeline
stages get 9 each; four FFNs stand for the 49 that were fused (arXiv 2503.18908). It was searched
for 1.5x the parent's latency on eight H100, fused, healed on 65 billion tokens, and trained on for
88 billion more. Not yet run here: it needs a cluster.
"""

from dataclasses import replace

from fretsaw.checkpoint.decilm import blocks_from_mults
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import CptSettings, DistillSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.model.config import BlockConfig
from fretsaw.pipeline.compression import compression
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.published import (
    LLAMA_405B,
    ONE_REQUEST,
    Cache,
    Claim,
    Deployment,
    Published,
)
from fretsaw.puzzle.settings import (
    AssembleSettings,
    CostSettings,
    FuseSettings,
    RankSettings,
    ScoreSettings,
    SpaceSettings,
)
from fretsaw.sft.settings import SftSettings
from fretsaw.training.settings import UpdateSettings

BLOCKS = """\
0 a/0.4875; 1 a/0.975; 2-7 a/1.4625; 8 a/1.95; 9-12 none; 13-15 a/1.95; 16-17 a/4.875; 18-23 none;
24-26 a/4.875; 27-31 none; 32-34 a/4.875; 35 a/2.4375; 36-38 none; 39-41 a/1.95; 42 -/1.95;
43 a/4.875; 44 -/4.875; 45-49 none; 50-53 a/4.875; 54-58 none; 59-62 a/4.875; 63-67 none;
68-71 a/4.875; 72-76 none; 77-80 a/4.875; 81-85 none; 86 a/4.875; 87-89 a/3.4125; 90-91 none;
92 a/2.925; 93-95 a/2.4375; 96-97 -/2.4375; 98 a/2.4375; 99 none; 100-106 -/2.4375; 107 a/2.4375;
108-112 none; 113 a/2.925; 114 a/4.875; 115 -/4.875; 116 a/4.875; 117-124 none; 125 -/36.5625;
126-133 none; 134 -/39.0; 135-142 none; 143 -/31.40625; 144-148 none; 149 -/27.5625; 150 -/1.95;
151 a/1.95; 152 a/2.4375; 153 none; 154-155 a/2.4375; 156 a/3.4125; 157-160 a/4.875; 161 a/2.4375"""

PARENT = LLAMA_405B
CHILD = replace(
    PARENT,
    blocks=blocks_from_mults(BLOCKS, hidden_size=16_384, num_key_value_heads=8),
    rope_scaling=replace(PARENT.rope_scaling, factor=16.0) if PARENT.rope_scaling else None,
)
FUSED = {399_360: 8, 425_984: 12, 343_040: 15, 301_056: 14}  # width: FFNs in it


def unfused(blocks: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
    """Return the blocks before fusing, without empty ones; the members' own widths are not known.

    So each fused width is cut into equal multiples of 256, the last taking the rest: a roofline
    sees their sum and their number.
    """
    found: list[BlockConfig] = []
    for block in blocks:
        count = FUSED.get(block.intermediate_size, 1)
        each = block.intermediate_size // count // 256 * 256
        widths = [each] * (count - 1) + [block.intermediate_size - each * (count - 1)]
        if block.ffn != "none":
            found += [replace(block, intermediate_size=width) for width in widths]
        elif block.attention != "none":
            found.append(block)
    return tuple(found)


BEFORE = replace(CHILD, blocks=unfused(CHILD.blocks))
PARENTS_SPEED = Deployment(config=PARENT, scenario=ONE_REQUEST)

PUBLISHED = Published(
    title="Llama-3_1-Nemotron-Ultra-253B-v1, from Llama-3.1-405B-Instruct (arXiv 2505.00949)",
    models={"parent": PARENT, "unfused": BEFORE, "child": CHILD},
    caches=(
        Cache(device="h100x8", dtype="fp8", tokens=3_000_000),
        Cache(device="h100x8", dtype="bf16", tokens=600_000),
    ),
    claims=(
        Claim(
            what="speed of one request on 8 GPUs, before fusing",
            faster=Deployment(config=BEFORE, scenario=ONE_REQUEST),
            slower=PARENTS_SPEED,
            metric="decode",
            ratio=1.53,
        ),
        Claim(
            what="speed of one request on 8 GPUs, fused",
            faster=Deployment(config=CHILD, scenario=ONE_REQUEST),
            slower=PARENTS_SPEED,
            metric="decode",
            ratio=1.71,
        ),
    ),
)

SEQ_LEN = 8192
TUNED_LEN = 24_576  # of conversations
ROW = 131_072  # the longest


def recipe(
    data: str,
    checkpoint: str = "meta-llama/Llama-3.1-405B-Instruct",
    target: str = "1.5x decode",
    conversations: str = "",
) -> list[Stage]:
    """Return the stages from the 405B parent and text to a fused, healed and trained-on child.

    Where a file of `conversations` is named, the child is tuned on them as the paper has it: once,
    and after that anew with a fresh optimizer. How many epochs followed is not published; one is
    ours.
    """
    calibration = 131_072
    space = SpaceSettings(kv_heads=(8,), ffn_percents=(87, 75, 62, 50, 25, 20, 10), linear=False)
    update = UpdateSettings(learning_rate=1e-4, master="bf16", optimizer="adamw")
    train = TrainSettings(
        tokens=54_000_000_000,
        lengths=(
            "seq_len=16384,tokens=5e9",
            "seq_len=32768,tokens=5e9",
            f"seq_len={ROW},tokens=8e8",
        ),
        seq_len=SEQ_LEN,
        batch_tokens=64 * ROW,
        micro_batch_tokens=ROW,
        activation_checkpointing=True,
        update=update,
    )
    stages = compression(
        parent=checkpoint,
        target=target,
        scenario=ONE_REQUEST,
        under="child",
        in_8_bits=(),
        rank=RankSettings(tokens=calibration, seq_len=SEQ_LEN),
        score=ScoreSettings(
            space=space,
            repair_tokens=calibration,
            tokens=calibration,
            draws=1,  # each takes hundreds of GB here
            seq_len=SEQ_LEN,
            batch_rows=1,
        ),
        cost=CostSettings(space=space, scenario=ONE_REQUEST, engine="roofline"),
        assemble=AssembleSettings(tokens=calibration, seq_len=SEQ_LEN),
        fuse=FuseSettings(
            rule="paper",
            max_width=425_984,
            repair_tokens=0,
            tokens=calibration,
            dependency_tokens=SEQ_LEN,
            seq_len=SEQ_LEN,
        ),
        distill=DistillSettings(train=train),
        evaluate=EvalSettings(seq_len=SEQ_LEN),
    )
    go_on = replace(train, tokens=73_000_000_000, lengths=(f"seq_len={ROW},tokens=15e9,factor=16",))
    corpus = CorpusSettings(source="files", seq_len=SEQ_LEN, max_tokens=100_000_000_000)
    tune = SftSettings(
        epochs=1,
        seq_len=TUNED_LEN,
        too_long="skip",
        batch_tokens=256 * TUNED_LEN,
        micro_batch_tokens=TUNED_LEN,
        update=UpdateSettings(
            learning_rate=1e-5, warmup_ratio=0.1, min_lr_ratio=0.1, master="bf16"
        ),
    )
    tuned = [
        Stage("child/sft", tune, {"model": "child/cpt", "data": [conversations]}),
        Stage("child/sft-restarted", tune, {"model": "child/sft", "data": [conversations]}),
    ]
    return [
        Stage("corpus", corpus, {"parent": checkpoint, "data": [data]}),
        *(stage for stage in stages if stage.kind not in ("bench", "report")),
        Stage(
            "child/cpt", CptSettings(train=go_on), {"model": "child/distill", "corpus": "corpus"}
        ),
        *(tuned if conversations else []),
    ]
