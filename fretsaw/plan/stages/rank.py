"""What ranking channels and heads takes."""

from collections.abc import Sequence
from dataclasses import replace

from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import frontier_bytes, gram_flops, refit_bytes, token_flops, weight_bytes
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.puzzle.settings import RankSettings


def rank(s: RankSettings, at: Shapes, on: Hardware) -> Work:
    """One pass of the parent over the calibration text, with Gram matrices."""
    parent = at["parent"]
    flops = s.tokens * token_flops(parent, s.seq_len) + gram_flops(parent, s.tokens)
    if s.channels == "repaired":  # an inverse, and updates of two matrices, in float64
        flops += 8 * sum(block.intermediate_size**3 for block in parent.blocks)
    per_layer = [b.intermediate_size + b.num_key_value_heads for b in parent.blocks]
    return Work(
        uses=(
            MemoryUse(
                "", weight_bytes(parent), frontier_bytes(parent, s.tokens) + refit_bytes(parent)
            ),
        ),
        tokens=s.tokens,
        seconds=on.alone.seconds(flops),
        disk=12 * sum(per_layer),  # an importance and a place in the order
        remedy="lower tokens, which the frontier is as long as",
    )


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> RankSettings:
    """Return the settings of four rows a step."""
    return replace(stage.settings, tokens=4 * steps * stage.settings.seq_len)


RANK = StagePlan(work=rank, fewer=fewer)
