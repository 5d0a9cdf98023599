"""What block distillation takes."""

from collections.abc import Sequence
from dataclasses import replace

from fretsaw.model.config import BlockConfig
from fretsaw.model.size import block_flops
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import frontier_bytes, half_width_alone, token_flops, weight_bytes
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.puzzle.settings import BldSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.scenario.scenario import MIB


def bld(s: BldSettings, at: Shapes, on: Hardware) -> Work:
    """Every alternative of every layer, forward and backward, on the parent's states."""
    parent = at["parent"]
    flops = s.tokens * token_flops(parent, s.seq_len)
    for block in parent.blocks:
        attention, ffn = layer_alternatives(block, replace(s.space, precisions=()))
        for a, f in [(a, ffn[0]) for a in attention[1:]] + [(attention[0], f) for f in ffn[1:]]:
            shape = BlockConfig.from_names(a, f)
            flops += 3 * s.tokens * block_flops(parent, shape, context=s.seq_len / 2).total
    frontier = min(s.frontier_mib * MIB, frontier_bytes(parent, s.tokens))
    largest = max(weight_bytes(replace(parent, blocks=(block,))) for block in parent.blocks)
    return Work(
        uses=(MemoryUse("", weight_bytes(parent), frontier, 4 * largest),),
        tokens=s.tokens,
        seconds=on.seconds(flops),
        disk=weight_bytes(parent),
    )


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> BldSettings:
    """Return the settings of so many steps on half the width."""
    s, rows = stage.settings, 4 * stage.settings.seq_len
    return replace(
        s,
        space=half_width_alone(s.space),
        tokens=steps * s.batch_tokens,
        repair_tokens=rows,
        heldout_tokens=rows,
        cross=False,
    )


BLD = StagePlan(work=bld, fewer=fewer)
