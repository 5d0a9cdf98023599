"""What fusing saves: the times of FFNs one after another against those of one wide FFN.

A fused FFN of any width is read off the times of a few, measured in the engine as the cost stage
does it: stacks of equal blocks beside the model itself, and the model with as much fused as can be.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fretsaw.model.config import BlockConfig, ModelConfig, Precision
from fretsaw.model.size import BYTES_PER_ELEMENT, block_params
from fretsaw.puzzle.costs import additive, probes
from fretsaw.puzzle.costs.cost import Rounds, measure, times_of
from fretsaw.puzzle.costs.engine_times import EngineTimes
from fretsaw.puzzle.costs.measurements import Measurements
from fretsaw.puzzle.library.runs import Group, fused_config, fused_shape, members
from fretsaw.scenario.roofline import PHASES
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage.execute import StageRun

MAX_WIDTHS = 6  # that are timed; between them time is a straight line
LAYERS = 4  # stacks of so many and twice as many, or fewer where memory is short
MEMORY_SHARE = 1 / 3  # of what is free, that one stack may take: the engine packs a second one
MOST_FUSED = f"{probes.CHILD} 0"
Savings = Mapping[Group, Mapping[str, float]]  # milliseconds by phase
Speeds = dict[Scenario, dict[str, dict[str, float]]]  # by phase: before, after, and their ratio


class FusedTimes(NamedTuple):
    """At one scenario: milliseconds by phase of the model, and what each group saves of them."""

    before: Mapping[str, float]
    savings: Savings
    error: Mapping[str, float]  # of the time foretold for the model with most fused, unseen
    noise: Mapping[str, float]


def time_groups(
    config: ModelConfig,
    groups: Sequence[Group],
    scenarios: Sequence[Scenario],
    num_rounds: int,
    free: float,
    run: StageRun,
) -> dict[Scenario, FusedTimes]:
    """Measure what the groups save at every scenario; timings are kept, and not made twice.

    Raises `ValueError` where not even two of the widest FFN fit into `free` bytes.
    """
    most = disjoint(groups)
    names = _timed_names(config, groups, most)
    layers = _stack_layers(config, names, scenarios[0].dtype, free)
    models = probes.without_twins(
        {
            **probes.stacks(config, names, layers),
            probes.PARENT: list(config.blocks),
            MOST_FUSED: list(fused_config(config, most).blocks),
        }
    )
    rounds = _measured(config, models, scenarios, num_rounds, "widths.jsonl", run)
    found = {}
    whole = [probes.PARENT, MOST_FUSED]
    for scenario in scenarios:
        before, error, noise = {}, {}, {}
        savings: dict[Group, dict[str, float]] = {group: {} for group in groups}
        for phase in PHASES:
            times, noises = additive.round_medians(times_of(rounds[scenario], phase))
            costs = additive.fit_additive(models, times, whole)
            left_out = additive.left_out_errors(models, times, whole, [MOST_FUSED])
            before[phase], error[phase] = times[probes.PARENT], left_out[MOST_FUSED]
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
) -> Speeds:
    """Measure both in turn: medians, and the speed-up as the median of the rounds' ratios.

    Where nothing has changed nothing is measured.
    """
    if before == after:
        return {}
    models = {"before": before.blocks, "after": after.blocks}
    rounds = _measured(before, models, scenarios, num_rounds, "before-after.jsonl", run)
    found: Speeds = {}
    for scenario in scenarios:
        found[scenario] = {}
        for phase in PHASES:
            of_phase = times_of(rounds[scenario], phase)
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
    file: str,
    run: StageRun,
) -> Mapping[Scenario, Rounds]:
    """Time all models in turn; what is in the file is from the same rounds, interrupted."""
    engine = EngineTimes(config, scenarios[0].dtype, run.device)
    kept = Measurements(run.resume_folder / file)
    return measure(engine, config, models, scenarios, num_rounds, kept, run)


def disjoint(groups: Sequence[Group]) -> list[Group]:
    """Return groups without a layer in common, the longest first taken."""
    taken: list[Group] = []
    for group in sorted(groups, key=lambda g: (g.first - g.last, g.first)):
        if all(group.last < one.first or one.last < group.first for one in taken):
            taken.append(group)
    return sorted(taken)


def _timed_names(config: ModelConfig, groups: Sequence[Group], most: Sequence[Group]) -> list[str]:
    """Return the FFNs to time: a few widths from the narrowest member to the widest group.

    Those of the model with most fused are among them, so that it can be foretold unseen.
    """
    shapes = [config.blocks[i] for group in groups for i in members(config.blocks, group)]
    shapes += [fused_shape(config.blocks, group) for group in groups]
    must = {fused_shape(config.blocks, group).ffn_name for group in most}
    by_kind: dict[tuple[str, Precision], dict[int, str]] = {}
    for shape in shapes:
        names = by_kind.setdefault((shape.ffn, shape.ffn_precision), {})
        names[shape.intermediate_size] = shape.ffn_name
    return sorted(must.union(*map(_a_few, by_kind.values())))


def _a_few(names: Mapping[int, str]) -> list[str]:
    """Return the names of at most `MAX_WIDTHS` widths, the narrowest and the widest among them."""
    if len(names) <= MAX_WIDTHS:
        return list(names.values())
    wanted = np.geomspace(min(names), max(names), MAX_WIDTHS)
    return [names[min(names, key=lambda width: abs(width - one))] for one in wanted]


def _stack_layers(config: ModelConfig, names: Sequence[str], dtype: str, free: float) -> int:
    """Return how many layers a stack has, so that twice as many of the widest fit into memory."""
    params = {name: block_params(config, probes.subblock(name)).total for name in names}
    widest = max(params, key=params.__getitem__)
    pair = 2 * params[widest] * BYTES_PER_ELEMENT[dtype] / MEMORY_SHARE
    free -= 3 * 4 * config.vocab_size * config.hidden_size  # embeddings, and the head packed too
    layers = min(LAYERS, int(free / pair))
    if layers < 1:
        raise ValueError(
            f"fuse: timing two layers of {widest} takes {pair / 2**30:.1f} GiB, and "
            f"{max(free, 0.0) / 2**30:.1f} are free; set max_width lower"
        )
    return layers


def _saved(blocks: Sequence[BlockConfig], group: Group, costs: Mapping[str, float]) -> float:
    """Return the members' times less that of their fused FFN."""
    timed = {probes.subblock(name): ms for name, ms in costs.items() if name.startswith("ffn")}

    def time(shape: BlockConfig) -> float:
        of_kind = {
            one.intermediate_size: ms
            for one, ms in timed.items()
            if (one.ffn, one.ffn_precision) == (shape.ffn, shape.ffn_precision)
        }
        widths = sorted(of_kind)
        return float(np.interp(shape.intermediate_size, widths, [of_kind[w] for w in widths]))

    return sum(time(blocks[i]) for i in members(blocks, group)) - time(fused_shape(blocks, group))
