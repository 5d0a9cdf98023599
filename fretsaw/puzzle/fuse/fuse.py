"""The fuse stage: neighbouring FFNs without attention between them become one (FFN Fusion).

Every group of every run is built, repaired in closed form and scored by how far the model moves;
what it saves is measured. Which groups are taken is chosen exactly, and then measured as a whole.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.beside import Layers, read_layers, write_layers, write_precisions
from fretsaw.checkpoint.llama import DTYPE_NAMES
from fretsaw.distributed.fanout import fan_out
from fretsaw.engine.page_memory import free_beside
from fretsaw.engine.timing import torch_dtype
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.puzzle.fuse.dependency import block_dependency
from fretsaw.puzzle.fuse.fused_times import FusedTimes, time_before_and_after, time_groups
from fretsaw.puzzle.fuse.fusion_scorer import FusionScorer, build_fused, open_calibration
from fretsaw.puzzle.fuse.grouping import Grouping, best_groupings, reaching
from fretsaw.puzzle.library.alternatives import Refit
from fretsaw.puzzle.library.fusion import with_fused
from fretsaw.puzzle.library.repair import gram_bytes, widest
from fretsaw.puzzle.library.replay import Replay
from fretsaw.puzzle.library.runs import (
    Group,
    check_groups,
    find_runs,
    fused_config,
    fused_shape,
    layers_of,
)
from fretsaw.puzzle.scores.scoreboard import Scoreboard
from fretsaw.puzzle.scores.scorer import heldout_rows
from fretsaw.puzzle.settings import FuseSettings
from fretsaw.scenario.scenario import Scenario, parse_scenarios
from fretsaw.scenario.target import Target
from fretsaw.stage.artifact import write_json
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say

FUSION, DEPENDENCY = "fusion.json", "dependency.json"
SCENARIO = "batch=1/64,in=64,out=64,dtype=fp32"
NO_RUNS = (
    "no two FFNs follow each other without an attention between; `fretsaw compress` removes "
    "attention where that pays"
)


def fuse(settings: FuseSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the fused checkpoint, every group's score, and the block-dependency matrix.

    Where nothing can be fused the checkpoint is written as it came.
    """
    config = checkpoint.read_config(inputs["model"])
    served = checkpoint.read_served_config(inputs["model"])
    label = run.device.split(":")[0]
    scenarios = parse_scenarios(settings.scenario or f"{SCENARIO},device={label}")
    for scenario in scenarios:
        scenario.check_context(config.max_position_embeddings)
        torch_dtype(scenario.dtype)  # raises for one that the engine does not serve
    windows = heldout_rows(settings, inputs).to(run.device)
    target = _speed_up(settings.target)
    cost = target.cost if target else "decode_ms"
    counted = _counted(scenarios, target)
    is_told = "search" in inputs
    if is_told:
        settings = as_searched(settings, inputs["search"], served)
    groups, is_open = candidates(config, settings)
    if is_told and not settings.groups:
        groups, is_open = [], False
    free = free_beside(config, torch.device(run.device))
    most = widest(free / max(1, run.workers.workers))  # the workers share a machine
    groups = repairable(config.blocks, groups, settings, most, is_open=is_open)

    # --- what each group costs and saves ----------------------------------------------------------
    board = score_groups(groups, settings, inputs, run)
    times = time_groups(served, groups, scenarios, settings.rounds, free, run) if groups else {}
    penalties = {g: board.mean(n, (str(g),), "kl") for n, g in enumerate(groups)}
    savings = {g: _saved_ms(times[counted].savings[g], cost) for g in groups}
    front = best_groupings(penalties, savings)

    # --- which are taken --------------------------------------------------------------------------
    decoder = checkpoint.load(inputs["model"], device=run.device)
    dtype = checkpoint.read_dtype(inputs["model"])
    wanted = [Grouping(sum(penalties.values()), sum(savings.values()), tuple(groups))]
    if target is not None:
        before = _saved_ms(times[counted].before, cost)
        wanted = [least_reaching(front, target, before)]
    elif is_open:
        wanted = most_first(front, settings.max_kl)
    tried: list[dict[str, Any]] = []
    run.progress.start("building", len(wanted), unit="grouping")
    for chosen in wanted:  # a whole may cost more than the sum of its parts
        fused, refits, kl = build_and_measure(
            decoder, chosen.groups, settings, inputs, windows, dtype
        )
        tried.append({"groups": [str(g) for g in chosen.groups], "kl": kl.mean().item()})
        run.step(len(tried), {"kl": kl.mean().item()})
        if chosen is wanted[-1] or kl.mean().item() <= settings.max_kl:
            break
    serving = fused_config(served, chosen.groups, keeps_layers=settings.keep_layers)
    after = {}
    if chosen.groups:
        after = time_before_and_after(served, serving, scenarios, settings.rounds, run)

    # --- what is written --------------------------------------------------------------------------
    checkpoint.write(fused, run.folder, like=inputs["model"], dtype=dtype)
    num_layers = len(config.blocks)
    stood = layers_of(num_layers, chosen.groups, keeps_layers=settings.keep_layers)
    say_where_layers_stand(run.folder, stood, inputs["model"], num_layers)
    write_precisions(run.folder, serving.blocks)
    measured = {"kl": kl.mean().item(), "stderr": kl.std().item() / len(kl) ** 0.5}
    repairs = [asdict(refit) if refit else None for refit in refits]
    write_json(
        run.folder / FUSION,
        {
            "metric": "KL(model || fused), nats a token",
            "runs": find_runs(config.blocks),
            "groups": [
                _group_row(n, group, config.blocks, board, times) for n, group in enumerate(groups)
            ],
            "saving_of": f"{cost} at {counted}",
            "front": [_grouping_row(one) for one in front],
            "chosen": {**_grouping_row(chosen), **measured, "repairs": repairs, "tried": tried},
            "times": {str(scenario): speeds for scenario, speeds in after.items()},
            "foretold": {
                str(scenario): {"error": dict(one.error), "noise": dict(one.noise)}
                for scenario, one in times.items()
            },
        },
    )
    if settings.dependency_tokens:
        write_dependency(decoder, settings, windows, run)
    if is_told and not groups:
        say("fuse: nothing is fused; the search fuses nothing")
    else:
        tell(chosen, measured["kl"], config, fused.config, after)
    freed = num_layers - len(layers_of(num_layers, chosen.groups, keeps_layers=False))
    metrics = {"groups": len(chosen.groups), "layers_freed": freed, "kl_sum": chosen.penalty}
    if after:
        metrics["decode_speedup"] = after[counted]["decode_ms"]["speedup"]
    return metrics | {"kl": measured["kl"]}


# --- which groups there are -----------------------------------------------------------------------


def as_searched(settings: FuseSettings, search: Path, config: ModelConfig) -> FuseSettings:
    """Return the settings with the groups that a search fuses of this child of it.

    Raises `ValueError` where the model is none of its solutions.
    """
    if settings.target or settings.groups or settings.rule == "paper":
        raise ValueError(
            "fuse: a search says what is fused; leave out target, groups and the paper's rule"
        )
    own = [[block.attention_name, block.ffn_name] for block in config.blocks]
    for solution in json.loads((search / "solutions.json").read_text()):
        if solution["choices"] == own:
            return replace(settings, groups=tuple(solution.get("fused", ())))
    raise ValueError(
        f"fuse: the model is none of the solutions of {search}; give the search that it was "
        "assembled from, or leave it out"
    )


def candidates(config: ModelConfig, settings: FuseSettings) -> tuple[list[Group], bool]:
    """Return the groups to score, and whether there is a choice among them to make.

    Raises `ValueError` where nothing can be fused, or not what was asked for.
    """
    blocks = config.blocks
    runs = find_runs(blocks)
    if settings.groups:
        groups = sorted(Group.parse(text) for text in settings.groups)
        check_groups(blocks, groups)
    elif not runs and settings.target:
        raise ValueError(f"fuse: target {settings.target} is out of reach; {NO_RUNS}")
    elif not runs:
        return [], True
    elif settings.rule == "paper":
        groups = by_the_papers_rule(blocks, runs, settings.max_width)
        if not groups:
            return [], False
    else:
        groups = [
            Group(first, last) for run in runs for first, last in itertools.combinations(run, 2)
        ]
    fitting = [g for g in groups if _fits(blocks, g, settings.max_width)]
    if not fitting or (settings.groups and len(fitting) < len(groups)):
        widths = {fused_shape(blocks, g).intermediate_size for g in groups}
        needed = max(widths) if settings.groups else min(widths)
        raise ValueError(
            f"fuse: max_width {settings.max_width}, but "
            f"{'groups given are' if settings.groups else 'the narrowest group is'} {needed} wide; "
            "raise it to that at least"
        )
    return fitting, not settings.groups and settings.rule == "exact"


def by_the_papers_rule(
    blocks: Sequence[BlockConfig], runs: Sequence[Sequence[int]], max_width: int
) -> list[Group]:
    """Return each run but for its last FFN, the most sensitive, in as few groups as fit."""
    groups = []
    for run in runs:
        open_group: list[int] = []
        for i in run[:-1]:
            width = sum(blocks[k].intermediate_size for k in [*open_group, i])
            if max_width and width > max_width and open_group:
                groups.append(open_group)
                open_group = []
            open_group.append(i)
        groups.append(open_group)
    return [Group(group[0], group[-1]) for group in groups if len(group) > 1]


def _fits(blocks: Sequence[BlockConfig], group: Group, max_width: int) -> bool:
    return not max_width or fused_shape(blocks, group).intermediate_size <= max_width


def repairable(
    blocks: Sequence[BlockConfig],
    groups: Sequence[Group],
    settings: FuseSettings,
    most: int,
    *,
    is_open: bool,
) -> list[Group]:
    """Return the groups that can be repaired, where memory allows a width of `most`.

    Where there is a choice, wider ones are left out, and that is said. Raises `ValueError` where
    there is none, or none is left.
    """
    if not settings.repair_tokens:
        return list(groups)
    widths = {group: fused_shape(blocks, group).intermediate_size for group in groups}
    fitting = [group for group in groups if widths[group] <= most]
    if fitting and is_open and len(fitting) < len(groups):
        say(
            f"fuse: {len(groups) - len(fitting)} of {len(groups)} groups are left out: to repair "
            f"an FFN more than {most} wide takes more memory than is free"
        )
    elif len(fitting) < len(groups):
        shown = (min if is_open else max)(widths.values())
        raise ValueError(
            f"fuse: repairing an FFN {shown} wide takes {gram_bytes(shown) / 2**30:.1f} GiB, more "
            f"than is free; set max_width to {most} or less, or repair_tokens to 0"
        )
    return fitting


def _counted(scenarios: Sequence[Scenario], target: Target | None) -> Scenario:
    """Return the scenario that counts for the choice: the first, or the one the target names."""
    if target is None or not target.at:
        return scenarios[0]
    named = [one for one in scenarios if one.agrees(target.at)]
    if not named:
        measured = "; ".join(map(str, scenarios))
        raise ValueError(f"fuse: target {target} names no scenario that is measured: {measured}")
    return named[0]


def _speed_up(text: str) -> Target | None:
    if not text:
        return None
    target = Target.parse(text)
    if target.unit != "speedup":
        raise ValueError(
            f"fuse: target {text!r}; fusing saves time, so give a speed-up such as '1.05x decode'"
        )
    return target


# --- scores ---------------------------------------------------------------------------------------


def score_groups(
    groups: Sequence[Group], settings: FuseSettings, inputs: Mapping[str, Path], run: StageRun
) -> Scoreboard:
    """Score every group by replay, on whatever workers there are; what is done is kept."""
    board = Scoreboard(run.resume_folder / "groups.jsonl")
    numbers = [n for n in range(len(groups)) if not board.has(0, n)]
    num_done = len(groups) - len(numbers)
    run.progress.start("scoring", len(groups), step=num_done, unit="group")
    scorer = partial(FusionScorer, settings, inputs, run.device)
    with fan_out(scorer, run.workers, device=run.device, check=run.check) as map_tasks:
        for index, entry in map_tasks([groups[n] for n in numbers]):
            number, num_done = numbers[index], num_done + 1
            name = (str(groups[number]),)
            board.add(0, number, {name: entry})
            run.step(num_done, {"kl": board.mean(number, name, "kl")}, row=False)
    return board


def most_first(front: Sequence[Grouping], max_kl: float) -> list[Grouping]:
    """Return the groupings of the front within a budget, what saves most first, nothing last."""
    within_it = [one for one in reversed(front) if one.penalty <= max_kl and one.groups]
    return [*within_it, Grouping(0.0, 0.0)]


def least_reaching(front: Sequence[Grouping], target: Target, before: float) -> Grouping:
    """Return the grouping of least KL that reaches the target from `before` milliseconds."""
    found = reaching(front, before - target.bound(before))
    if found is None:
        most = target.reachable(before - front[-1].saving, before)
        raise ValueError(
            f"fuse: target {target.text} is out of reach; fusing reaches {most} at most here, the "
            "rest is for the search"
        )
    return found


def _saved_ms(by_phase: Mapping[str, float], cost: str) -> float:
    return sum(by_phase[part] for part in cost.split("+"))


# --- the fused model ------------------------------------------------------------------------------


@torch.inference_mode()
def build_and_measure(
    decoder: Decoder,
    groups: tuple[Group, ...],
    settings: FuseSettings,
    inputs: Mapping[str, Path],
    windows: Tensor,
    dtype: str,
) -> tuple[Decoder, list[Refit | None], Tensor]:
    """Return the model with these groups fused, their repairs, and every row's KL from before.

    New weights are rounded to `dtype`, in which they will be written, before they are measured.
    """
    calibration = open_calibration(decoder, settings, inputs)
    blocks, refits = build_fused(decoder, groups, settings, calibration)
    for block in blocks:
        for weight in block.parameters():
            weight.copy_(weight.to(getattr(torch, DTYPE_NAMES[dtype])))
    fused = with_fused(decoder, groups, blocks, keeps_layers=settings.keep_layers)
    return fused, refits, Replay(decoder, windows, settings.batch_rows).figures_of(fused).kl


def say_where_layers_stand(folder: Path, stood: list[int], model: Path, num_layers: int) -> None:
    """Say where the layers stand in the model before, or in the one that this one came from."""
    before = read_layers(model)
    after = tuple(before.after[i] if before else i for i in stood)
    of = before.of if before else num_layers
    write_layers(folder, Layers(of, after))


def write_dependency(
    decoder: Decoder, settings: FuseSettings, windows: Tensor, run: StageRun
) -> None:
    """Write the block-dependency matrix, null where there is nothing to compare."""
    rows = max(1, settings.dependency_tokens // settings.seq_len)
    run.progress.start("watching", len(decoder.config.blocks), unit="block")
    matrix = block_dependency(
        decoder,
        windows[:rows, :-1],
        settings.batch_rows,
        lambda done: run.step(done, row=False),
    )
    values = [[None if x != x else x for x in row] for row in matrix.tolist()]
    write_json(
        run.folder / DEPENDENCY,
        {
            "what": "cosine distance of what block j adds, with and without block i; row i",
            "tokens": windows[:rows, :-1].numel(),
            "matrix": values,
        },
    )


# --- what is written ------------------------------------------------------------------------------


def _group_row(
    number: int,
    group: Group,
    blocks: Sequence[BlockConfig],
    board: Scoreboard,
    times: Mapping[Any, FusedTimes],
) -> dict[str, Any]:
    name = (str(group),)
    return {
        "group": str(group),
        "width": fused_shape(blocks, group).intermediate_size,
        "kl": board.mean(number, name, "kl"),
        "stderr": board.stderr(number, name, "kl"),
        "repair": board.repairs[number, name],
        "saved": {str(scenario): dict(one.savings[group]) for scenario, one in times.items()},
    }


def _grouping_row(one: Grouping) -> dict[str, Any]:
    return {
        "groups": [str(group) for group in one.groups],
        "kl_sum": one.penalty,
        "saved_ms": one.saving,
    }


def tell(
    chosen: Grouping, kl: float, before: ModelConfig, after: ModelConfig, times: Mapping
) -> None:
    """Print what was fused, what it costs and what it saves."""
    if not chosen.groups:
        has_runs = bool(find_runs(before.blocks))
        why = "no group is worth its KL, or the rule finds none" if has_runs else NO_RUNS
        return say(f"fuse: nothing is fused; {why}")
    which = ", ".join(str(group) for group in chosen.groups)
    speeds = "; ".join(
        f"{phase.removesuffix('_ms')} {row['speedup']:.3f}x at batch {scenario.batch} (noise "
        f"{row['noise']:.1%})"
        for scenario, phases in times.items()
        for phase, row in phases.items()
    )
    say(
        f"fuse: {which} fused, {before.num_hidden_layers} -> {after.num_hidden_layers} layers, KL "
        f"{kl:.5f} (sum of groups {chosen.penalty:.5f}); {speeds}"
    )
