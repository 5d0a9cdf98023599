"""Llama-3_3-Nemotron-Super-49B-v1 as data, and the stages that would make such a child.

    fretsaw plan ln_super                                    # what fits, how fast: beside the paper
    fretsaw run ln_super --out RUN --arg data=TEXT [--arg conversations=ROWS] --dry-run

The blocks are those of the published config: 49 of 80 layers keep their attention, FFNs are 9 to
100 % wide. It was searched for one H100 in FP8 with about 300,000 tokens cached, and healed on 40
billion tokens (arXiv 2505.00949). Not yet run here: it needs a cluster.
"""

from dataclasses import replace

from fretsaw.checkpoint.decilm import blocks_from_mults
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import DistillSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.pipeline.compression import compression
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.published import LLAMA_70B, THROUGHPUT, Cache, Claim, Deployment, Published
from fretsaw.puzzle.settings import (
    AssembleSettings,
    CostSettings,
    RankSettings,
    ScoreSettings,
    SpaceSettings,
)
from fretsaw.sft.settings import SftSettings
from fretsaw.training.settings import UpdateSettings

BLOCKS = """\
0 a/2.625; 1-5 a/5.25; 6-7 -/2.625; 8-10 a/5.25; 11 -/3.28125; 12-41 a/5.25; 42 -/1.3125;
43-44 -/2.625; 45 -/1.3125; 46 -/5.25; 47 -/1.3125; 48 -/2.625; 49-51 -/1.3125; 52 a/5.25;
53 -/1.3125; 54-55 -/1.0; 56 -/1.3125; 57-59 -/1.0; 60-61 -/1.3125; 62-63 -/0.5; 64-65 -/1.0;
66-67 -/0.5; 68 -/1.0; 69-70 -/0.5; 71-79 a/5.25"""

CHILD = replace(
    LLAMA_70B, blocks=blocks_from_mults(BLOCKS, hidden_size=8192, num_key_value_heads=8)
)
ON_ONE = Deployment(config=CHILD, scenario=THROUGHPUT)

PUBLISHED = Published(
    title="Llama-3_3-Nemotron-Super-49B-v1, from Llama-3.3-70B-Instruct (arXiv 2505.00949)",
    models={"parent": LLAMA_70B, "child": CHILD},
    caches=(Cache(device="h100", dtype="fp8", tokens=300_000),),
    claims=(
        Claim(
            what="throughput a GPU, both on one, batch 256",
            faster=ON_ONE,
            slower=Deployment(config=LLAMA_70B, scenario=THROUGHPUT),
            metric="throughput",
            ratio=5.0,
        ),
        Claim(
            what="throughput a GPU, on one against the parent on four",
            faster=ON_ONE,
            slower=Deployment(config=LLAMA_70B, scenario=THROUGHPUT + "x4"),
            metric="throughput",
            ratio=2.17,
        ),
    ),
)

SEQ_LEN = 8192
TUNED_LEN = 16_384  # of conversations


def recipe(
    data: str,
    checkpoint: str = "meta-llama/Llama-3.3-70B-Instruct",
    target: str = "80GB",
    heal_tokens: int = 40_000_000_000,
    conversations: str = "",
) -> list[Stage]:
    """Return the stages from the 70B parent and text to a healed child, evaluated.

    Where a file of `conversations` is named, the child is tuned on them as the paper has it: once,
    at a fixed rate.

    The target is what fits on one H100: weights and 256 requests' keys and values, in FP8. Costs
    are rooflines; time the child in the engine that serves it (docs/cost.md).
    """
    calibration = 131_072
    space = SpaceSettings(kv_heads=(8,), ffn_percents=(87, 75, 62, 50, 25, 20, 10), linear=False)
    stages = compression(
        parent=checkpoint,
        target=target,
        scenario=THROUGHPUT,
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
        cost=CostSettings(space=space, scenario=THROUGHPUT, engine="roofline"),
        assemble=AssembleSettings(tokens=calibration, seq_len=SEQ_LEN),
        distill=DistillSettings(
            train=TrainSettings(
                tokens=heal_tokens,
                seq_len=SEQ_LEN,
                batch_tokens=256 * SEQ_LEN,
                micro_batch_tokens=SEQ_LEN,
                activation_checkpointing=True,
                update=UpdateSettings(learning_rate=1e-4, master="bf16", optimizer="adamw"),
            )
        ),
        evaluate=EvalSettings(seq_len=SEQ_LEN),
    )
    corpus = CorpusSettings(source="files", seq_len=SEQ_LEN, max_tokens=heal_tokens)
    kept = [stage for stage in stages if stage.kind not in ("bench", "report")]
    [healed] = [stage.name for stage in kept if stage.kind == "distill"]
    tune = SftSettings(
        epochs=1,
        seq_len=TUNED_LEN,
        too_long="skip",
        batch_tokens=256 * TUNED_LEN,
        micro_batch_tokens=TUNED_LEN,
        update=UpdateSettings(
            learning_rate=5e-6, schedule="constant", warmup_ratio=0.0, master="bf16"
        ),
    )
    tuned = Stage("child/sft", tune, {"model": healed, "data": [conversations]})
    return [
        Stage("corpus", corpus, {"parent": checkpoint, "data": [data]}),
        *kept,
        *([tuned] if conversations else []),
    ]
