"""What scoring every alternative takes."""

from collections.abc import Sequence
from dataclasses import replace

from fretsaw.model.size import block_flops, head_flops
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import (
    EVAL_BATCH,
    PROMPT,
    decoding_s,
    frontier_bytes,
    half_width_alone,
    logit_bytes,
    refit_bytes,
    token_flops,
    weight_bytes,
)
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.puzzle.settings import ScoreSettings
from fretsaw.puzzle.space import layer_alternatives


def score(s: ScoreSettings, at: Shapes, on: Hardware) -> Work:
    """Replay: a candidate of layer i runs layers i to the last, and the head; refits twice more."""
    parent = at["parent"]
    names = [layer_alternatives(block, s.space) for block in parent.blocks]
    counts = [len(a) * len(f) if s.exact else len(a) + len(f) - 2 + s.joint_pairs for a, f in names]
    spans = max(0, s.fused - 1)
    per_block = [block_flops(parent, b, context=s.seq_len / 2).total for b in parent.blocks]
    judged = s.repair_tokens / 8 * 2 * (1 + s.ahead)  # by the KL before and after every refit
    exams = 0.0
    if s.metric == "accuracy":
        put = (sum(counts) + 1) * s.num_problems
        exams = decoding_s(parent, on.alone, put, PROMPT, s.max_new_tokens, EVAL_BATCH)
    flops = s.tokens * token_flops(parent, s.seq_len)
    for i, count in enumerate(counts):
        replayed = sum(per_block[i:]) + head_flops(parent)
        fitted = 2 * (1 + s.ahead) * s.repair_tokens * per_block[i]
        gram = 2 * s.repair_tokens * parent.blocks[i].intermediate_size ** 2
        flops += (count + 2 * spans) * ((s.tokens + judged) * replayed + fitted + gram)
    return Work(
        uses=(
            MemoryUse(
                "",
                weight_bytes(parent),
                1.5 * frontier_bytes(parent, s.tokens + s.repair_tokens) + refit_bytes(parent),
                logits=logit_bytes(parent, s.batch_rows * s.seq_len, 4),
            ),
        ),
        tokens=(s.tokens + s.repair_tokens) * sum(counts),
        seconds=on.seconds(flops) + exams / on.count,
        disk=200 * sum(counts) * (1 + s.tokens / s.seq_len / 10),
        remedy="lower tokens, repair_tokens or batch_rows",
    )


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> ScoreSettings:
    """Return the settings of two rows a step, on half the width."""
    s, rows = stage.settings, 2 * steps * stage.settings.seq_len
    return replace(
        s,
        space=half_width_alone(s.space),
        metric="kl",
        task="",
        tokens=rows,
        repair_tokens=rows if s.repair_tokens else 0,
        first_tokens=0,
        max_error=0.0,
        exact=False,
        fused=0,
        joint_pairs=0,
    )


SCORE = StagePlan(work=score, fewer=fewer)
