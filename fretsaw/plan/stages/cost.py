"""What timing every alternative takes."""

from collections.abc import Sequence
from dataclasses import replace

from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import half_width_alone
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.puzzle.costs.probes import alternative_names, stacks, whole_models
from fretsaw.puzzle.settings import CostSettings
from fretsaw.scenario.memory import network_memory
from fretsaw.scenario.roofline import network_ms
from fretsaw.scenario.scenario import MIB, parse_scenarios

SERVER_START_S = 60.0


TIMED_PASSES = 5  # decoding steps of one timing


def cost(s: CostSettings, at: Shapes, on: Hardware) -> Work:
    """Stacks of the parent's block with every alternative, and whole models, in every round."""
    parent, scenarios = at["parent"], parse_scenarios(s.scenario)
    names = alternative_names(parent, s.space)
    disk = 400.0 * len(names)
    if s.engine == "roofline":
        return Work(seconds=0.1 * len(scenarios), disk=disk)
    models = stacks(parent, names, s.layers) | whole_models(parent, s.space, s.probes, 0)
    configs = [replace(parent, blocks=tuple(blocks)) for blocks in models.values()]
    total_ms, memory = 0.0, 0.0
    for scenario in scenarios:
        here = replace(scenario, device=on.device.name)
        memory = max(memory, *(MIB * network_memory(config, here) for config in configs))
        for config in configs:
            ms = network_ms(config, here)
            steps = TIMED_PASSES / here.output_tokens
            total_ms += 2 * ms["prefill_ms"] + min(1.0, steps) * ms["decode_ms"]
    start = SERVER_START_S * len(models) if s.engine == "vllm" else 0.0
    rows = sum(one.batch for one in scenarios) * s.rounds * len(models)
    return Work(
        uses=(MemoryUse(weights=memory),),
        tokens=rows * max(one.prompt_tokens for one in scenarios),
        seconds=s.rounds * total_ms / 1e3 + start,
        disk=disk,
        remedy="time a smaller batch, or lower layers",
        note=on.note_of(s.space.precisions),
    )


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> CostSettings:
    """Return the settings of so many rounds, on half the width."""
    space = half_width_alone(stage.settings.space)
    return replace(stage.settings, space=space, rounds=steps, layers=1, probes=0)


COST = StagePlan(work=cost, fewer=fewer, left_out=frozenset({"measured", "refit"}))
