"""What fusing saves: the times of FFNs one after another against those of one wide FFN.

A fused FFN of any width is read off the times of a few, measured in the engine as the cost stage
does it: stacks of equal blocks beside the model itself, and the model with all its runs fused.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.puzzle import additive, probes
from fretsaw.puzzle.cost import measure
from fretsaw.puzzle.embedded import Embedded
from fretsaw.puzzle.measurements import Measurements
from fretsaw.puzzle.roofline import PHASES
from fretsaw.puzzle.runs import Group, find_runs, fused_config, fused_shape, members
from fretsaw.scenario import Scenario
from fretsaw.stage import StageRun

MAX_WIDTHS = 6  # that are timed; between them time is a straight line
LAYERS = 4  # stacks of so many and twice as many
ALL_FUSED = f"{probes.CHILD} 0"
Savings = Mapping[Group, Mapping[str, float]]  # milliseconds by phase


class FusedTimes(NamedTuple):
    """At one scenario: milliseconds by phase of the model, and what each group saves of them."""

    before: Mapping[str, float]
    savings: Savings
    error: Mapping[str, float]  # of the time foretold for the model with all runs fused, unseen
    noise: Mapping[str, float]


def time_groups(
    config: ModelConfig,
    groups: Sequence[Group],
    scenarios: Sequence[Scenario],
    num_rounds: int,
    run: StageRun,
) -> dict[Scenario, FusedTimes]:
    """Measure what the groups save at every scenario; timings are kept, and not made twice."""
    names = _timed_names(config, groups)
    models = probes.without_twins(
        {
            **probes.stacks(config, names, LAYERS),
            probes.PARENT: list(config.blocks),
            ALL_FUSED: list(fused_config(config, _whole_runs(config.blocks)).blocks),
        }
    )
    rounds = _measured(config, models, scenarios, num_rounds, run)
    found = {}
    whole = [probes.PARENT, ALL_FUSED]
    for scenario in scenarios:
        before, error, noise = {}, {}, {}
        savings: dict[Group, dict[str, float]] = {group: {} for group in groups}
        for phase in PHASES:
            of_phase = {m: [times[phase] for times in rounds[scenario][m]] for m in models}
            times, noises = additive.round_medians(of_phase)
            costs = additive.fit_additive(models, times, whole)
            left_out = additive.left_out_errors(models, times, whole, [ALL_FUSED])
            before[phase], error[phase] = times[probes.PARENT], left_out[ALL_FUSED]
            noise[phase] = float(np.median(list(noises.values())))
            for group in groups:
                savings[group][phase] = _saved(config.blocks, group, costs)
        found[scenario] = FusedTimes(before, savings, error, noise)
    return found


def time_before_and_after(
    before: ModelConfig,
    after: ModelConfig,
    scenarios: Sequence[Scenario],
    num_rounds: int,
    run: StageRun,
) -> dict[Scenario, dict[str, dict[str, float]]]:
    """Measure both in turn: medians, and the speed-up as the median of the rounds' ratios."""
    models = {"before": before.blocks, "after": after.blocks}
    rounds = _measured(before, models, scenarios, num_rounds, run)
    found: dict[Scenario, dict[str, dict[str, float]]] = {}
    for scenario in scenarios:
        found[scenario] = {}
        for phase in PHASES:
            of_phase = {m: [times[phase] for times in rounds[scenario][m]] for m in models}
            ratios = np.array(of_phase["before"]) / np.array(of_phase["after"])
            _, noises = additive.round_medians(of_phase)
            found[scenario][phase] = {
                "before_ms": float(np.median(of_phase["before"])),
                "after_ms": float(np.median(of_phase["after"])),
                "speedup": float(np.median(ratios)),
                "noise": max(noises.values()),
            }
    return found


def _measured(
    config: ModelConfig,
    models: probes.Models,
    scenarios: Sequence[Scenario],
    num_rounds: int,
    run: StageRun,
) -> Mapping[Scenario, Mapping[str, Sequence[Mapping[str, float]]]]:
    engine = Embedded(config, scenarios[0].dtype, run.device)
    kept = Measurements(run.resume_folder / "times.jsonl")
    return measure(engine, config, models, scenarios, num_rounds, kept, run)


def _whole_runs(blocks: Sequence[BlockConfig]) -> list[Group]:
    return [Group(run[0], run[-1]) for run in find_runs(blocks)]


def _timed_names(config: ModelConfig, groups: Sequence[Group]) -> list[str]:
    """Return the FFNs to time: a few widths between the narrowest member and the widest group."""
    shapes = [config.blocks[i] for group in groups for i in members(config.blocks, group)]
    shapes += [fused_shape(config.blocks, group) for group in groups]
    widths = sorted({shape.intermediate_size for shape in shapes if shape.ffn == "swiglu"})
    if len(widths) > MAX_WIDTHS:
        wanted = np.geomspace(widths[0], widths[-1], MAX_WIDTHS)
        widths = sorted({min(widths, key=lambda w: abs(w - one)) for one in wanted})
    linear = {shape.ffn_name for shape in shapes if shape.ffn == "linear"}
    return [*(f"ffn{width}" for width in widths), *linear]


def _saved(blocks: Sequence[BlockConfig], group: Group, costs: Mapping[str, float]) -> float:
    """Return the members' times less that of their fused FFN."""
    sized = {name.removeprefix("ffn"): ms for name, ms in costs.items() if name.startswith("ffn")}
    widths = sorted(int(width) for width in sized if width.isdigit())

    def time(shape: BlockConfig) -> float:
        if shape.ffn == "linear":
            return costs[shape.ffn_name]
        return float(np.interp(shape.intermediate_size, widths, [sized[str(w)] for w in widths]))

    return sum(time(blocks[i]) for i in members(blocks, group)) - time(fused_shape(blocks, group))
