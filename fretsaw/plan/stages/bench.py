"""What measuring speeds takes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fretsaw.bench.settings import BenchSettings
from fretsaw.model.size import BYTES_PER_ELEMENT, num_params
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import short_scenario
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.scenario.memory import network_memory
from fretsaw.scenario.roofline import network_ms
from fretsaw.scenario.scenario import MIB, Scenario


def bench(s: BenchSettings, at: Shapes, on: Hardware) -> Work:
    """Parent twice and child once a round, each reading its prompts twice."""
    served = replace(Scenario.parse(s.scenario), device=on.device.name)
    parent, child = (network_ms(at[name], served) for name in ("parent", "child"))

    def once(ms: Mapping[str, float]) -> float:
        return 2 * ms["prefill_ms"] + ms["decode_ms"]

    total_ms = s.rounds * (2 * once(parent) + once(child)) + once(parent) + once(child)
    tokens = served.batch * (2 * served.prompt_tokens + served.output_tokens)
    weights = [num_params(at[n]) * BYTES_PER_ELEMENT[served.dtype] for n in ("parent", "child")]
    cache = MIB * network_memory(at["parent"], served) - weights[0]
    return Work(
        uses=(MemoryUse(weights=2 * sum(weights), cache=cache),),
        tokens=3 * s.rounds * tokens,
        seconds=total_ms / 1e3,
        disk=1e4,
        remedy="serve a smaller batch",
    )


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> BenchSettings:
    """Return the settings of so many rounds of short requests."""
    return BenchSettings(scenario=short_scenario(stage.settings.scenario), rounds=steps)


BENCH = StagePlan(work=bench, fewer=fewer, left_out=frozenset({"search"}))
