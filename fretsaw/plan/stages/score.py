"""What scoring every alternative takes."""

from collections.abc import Sequence
from dataclasses import replace

from fretsaw.model.size import block_flops, gradient_bytes, head_flops
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import (
    EVAL_BATCH,
    PROMPT,
    decoding_s,
    frontier_bytes,
    gradient_flops,
    half_width_alone,
    judging_bytes,
    judging_flops,
    logit_bytes,
    refit_bytes,
    token_flops,
    weight_bytes,
)
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.puzzle.settings import ScoreSettings
from fretsaw.puzzle.space import layer_alternatives

NUM_TARGETS = 3  # whose answers are replayed, where not all alternatives are
NUM_ANCHORS = 8
MAX_KEPT = 1 << 30  # bytes of the parent's log-probabilities that replay keeps; more are made anew


def score(s: ScoreSettings, at: Shapes, on: Hardware) -> Work:
    """Repairs, then estimates and a few replays: a replay of layer i runs i to the last, and head.

    Estimates take gradients of the text first. Where refits are judged by replay, that is twice
    for each.
    """
    parent = at["parent"]
    names = [layer_alternatives(block, s.space) for block in parent.blocks]
    counts = [len(a) * len(f) if s.exact else len(a) + len(f) - 2 + s.joint_pairs for a, f in names]
    spans = max(0, s.fused - 1)
    per_block = [block_flops(parent, b, context=s.seq_len / 2).total for b in parent.blocks]
    exams = 0.0
    if s.metric == "accuracy":
        put = (sum(counts) + 1) * s.num_problems
        exams = decoding_s(parent, on.alone, put, PROMPT, s.max_new_tokens, EVAL_BATCH)
    replayed, gradients = 1.0, 0.0  # the share of alternatives; bytes
    flops = s.tokens * token_flops(parent, s.seq_len)
    if s.scores_by_estimate:
        once = NUM_ANCHORS + NUM_TARGETS * len(counts) + s.joint_pairs * len(counts)
        replayed = min(1.0, once / max(1, sum(counts)))
        draws = s.scoring_draws(s.tokens // s.seq_len)
        flops += gradient_flops(parent, s.tokens, s.seq_len, draws)
        gradients += gradient_bytes(parent, s.tokens, draws)
    if s.judges_by_estimate:
        flops += judging_flops(parent, s.repair_tokens, s.seq_len)
        gradients += judging_bytes(parent, s.repair_tokens, s.seq_len)
    for i, count in enumerate(counts):
        tail = sum(per_block[i:]) + head_flops(parent)
        changed = (1 + s.ahead) / 2 * per_block[i]  # the subblocks that are refitted
        judging = tail * (1 + s.ahead) if s.judge == "replay" else changed
        fitted = 2 * s.repair_tokens * changed
        gram = 2 * s.repair_tokens * parent.blocks[i].intermediate_size ** 2
        made = fitted + gram + s.tokens * changed + s.repair_tokens / 4 * judging
        flops += (count + 2 * spans) * made + (count * replayed + 2 * spans) * s.tokens * tail
    places = 2 * parent.num_hidden_layers
    kept = min(logit_bytes(parent, 1, 1) * s.tokens, MAX_KEPT)
    return Work(
        uses=(
            MemoryUse(
                "",
                weight_bytes(parent),
                1.5 * frontier_bytes(parent, s.tokens + s.repair_tokens)
                + refit_bytes(parent)
                + gradients / places,
                logits=logit_bytes(parent, s.batch_rows * s.seq_len, 4) + kept,
            ),
        ),
        tokens=(s.tokens + s.repair_tokens) * sum(counts),
        seconds=on.seconds(flops) + exams / on.count,
        disk=200 * sum(counts) * (1 + s.tokens / s.seq_len / 10) + gradients,
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
