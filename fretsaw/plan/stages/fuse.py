"""What fusing FFNs takes."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import (
    frontier_bytes,
    gram_flops,
    logit_bytes,
    replay_flops,
    saved_bytes,
    short_scenario,
    token_flops,
    weight_bytes,
)
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.puzzle.library.runs import find_runs
from fretsaw.puzzle.settings import FuseSettings
from fretsaw.scenario.memory import gram_bytes
from fretsaw.scenario.roofline import network_ms
from fretsaw.scenario.scenario import parse_scenarios


def fuse(s: FuseSettings, at: Shapes, on: Hardware) -> Work:
    """Every contiguous group of every run by replay, then before and after timed in turn."""
    model = at["model"]
    runs = find_runs(model.blocks)
    groups = [i for run in runs for i, _ in itertools.combinations(run, 2)]
    groups = groups if s.rule == "exact" else [run[0] for run in runs]
    judged = s.tokens + s.repair_tokens / 4
    flops = judged * replay_flops(model, s.seq_len, groups) + gram_flops(model, s.repair_tokens)
    widths = [sum(model.blocks[i].intermediate_size for i in run) for run in runs]
    fused = min(max(widths), s.max_width or max(widths)) if runs and s.repair_tokens else 0
    default = "batch=1/64,in=64,out=64,dtype=fp32,device=cpu"
    served = [replace(one, device=on.device.name) for one in parse_scenarios(s.scenario or default)]
    timed_ms = sum(2 * s.rounds * sum(network_ms(model, one).values()) for one in served)
    matrix = s.dependency_tokens * token_flops(model, s.seq_len) * model.num_hidden_layers
    return Work(
        uses=(
            MemoryUse("", 2 * weight_bytes(model),
                  frontier_bytes(model, s.tokens + s.repair_tokens) + gram_bytes(fused),
                  logits=logit_bytes(model, s.batch_rows * s.seq_len)),
        ),
        tokens=(s.tokens + s.repair_tokens) * max(1, len(groups)),
        seconds=on.seconds(flops + matrix) + timed_ms / 1e3,
        disk=saved_bytes(model, on),
        remedy="lower max_width or repair_tokens",
    )  # fmt: skip


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> FuseSettings:
    """Return the settings of two rows a step, timed once."""
    s, rows = stage.settings, 2 * steps * stage.settings.seq_len
    return replace(
        s,
        tokens=rows,
        repair_tokens=rows if s.repair_tokens else 0,
        dependency_tokens=0,
        rounds=1,
        scenario=short_scenario(s.scenario) if s.scenario else "",
    )


FUSE = StagePlan(work=fuse, fewer=fewer)
