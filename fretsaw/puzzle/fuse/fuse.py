"""The fuse stage: neighbouring FFNs without attention between them become one (FFN Fusion).

Every group of every run is built, repaired in closed form and scored by how far the model moves;
what it saves is measured. Which groups are taken is chosen exactly, and then measured as a whole.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data.by_source import source_shares
from fretsaw.engine.page_memory import free_beside
from fretsaw.engine.timing import torch_dtype
from fretsaw.model.config import ModelConfig
from fretsaw.puzzle.fuse.candidates import groups_to_score
from fretsaw.puzzle.fuse.fused_model import build_first_within
from fretsaw.puzzle.fuse.fused_times import time_before_and_after, time_groups
from fretsaw.puzzle.fuse.fusion_files import (
    FUSION,
    chosen_row,
    foretold_rows,
    group_rows,
    grouping_row,
    say_what_is_fused,
    write_checkpoint,
    write_dependency,
)
from fretsaw.puzzle.fuse.fusion_scorer import score_groups
from fretsaw.puzzle.fuse.grouping import Grouping, best_groupings, least_reaching, most_first
from fretsaw.puzzle.library.repair import widest
from fretsaw.puzzle.library.runs import find_runs, fused_config
from fretsaw.puzzle.scores.scorer import heldout_rows
from fretsaw.puzzle.search.program import sum_of
from fretsaw.puzzle.settings import FuseSettings
from fretsaw.scenario.scenario import Scenario, parse_scenarios
from fretsaw.scenario.target import Target
from fretsaw.stage.execute import StageRun
from fretsaw.stage.whole import write_json

SCENARIO = "batch=1/64,in=64,out=64,dtype=fp32"


def fuse(settings: FuseSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the fused checkpoint, every group's score, and the block-dependency matrix.

    Where nothing can be fused the checkpoint is written as it came.
    """
    # --- set-up -----------------------------------------------------------------------------------
    config = checkpoint.read_config(inputs["model"])
    served = checkpoint.read_served_config(inputs["model"])
    scenarios = scenarios_of(settings, config, run.device)
    windows = heldout_rows(settings, inputs).to(run.device)
    target = speed_up(settings.target)
    cost, counted = target.cost if target else "decode_ms", scenario_counted(scenarios, target)
    free = free_beside(config, torch.device(run.device))
    most = widest(free / max(1, run.workers.workers))  # the workers share a machine
    groups, is_open = groups_to_score(config, served, settings, most, inputs.get("search"))

    # --- what each group costs and saves ----------------------------------------------------------
    board = score_groups(groups, settings, inputs, run)
    times = time_groups(served, groups, scenarios, settings.rounds, free, run) if groups else {}
    penalties = {g: board.mean(n, (str(g),), "kl") for n, g in enumerate(groups)}
    savings = {g: sum_of(times[counted].savings[g], cost) for g in groups}
    front = best_groupings(penalties, savings)

    # --- which are taken --------------------------------------------------------------------------
    wanted = [Grouping(sum(penalties.values()), sum(savings.values()), tuple(groups))]
    if target is not None:
        wanted = [least_reaching(front, target, sum_of(times[counted].before, cost))]
    elif is_open:
        wanted = most_first(front, settings.max_kl)
    decoder = checkpoint.load(inputs["model"], device=run.device)
    fused, tried = build_first_within(decoder, wanted, settings, inputs, windows, run)
    chosen = fused.grouping
    serving = fused_config(served, chosen.groups, keeps_layers=settings.keep_layers)
    speeds = time_before_and_after(served, serving, scenarios, settings.rounds, run)

    # --- what is written --------------------------------------------------------------------------
    shares = source_shares(inputs["corpus"], settings.seq_len, len(windows))
    write_checkpoint(run.folder, fused, serving, inputs["model"])
    write_json(
        run.folder / FUSION,
        {
            "metric": "KL(model || fused), nats a token",
            "runs": find_runs(config.blocks),
            "groups": group_rows(groups, config, board, times),
            "saving_of": f"{cost} at {counted}",
            "front": [grouping_row(one) for one in front],
            "chosen": {**chosen_row(fused, shares), "tried": tried},
            "times": {str(scenario): by_phase for scenario, by_phase in speeds.items()},
            "foretold": foretold_rows(times),
        },
    )
    if settings.dependency_tokens:
        write_dependency(decoder, settings, windows, run)
    say_what_is_fused(fused, config, speeds, is_told="search" in inputs)
    return {
        "groups": len(chosen.groups),
        "layers_freed": sum(len(group.layers) - 1 for group in chosen.groups),
        "kl_sum": chosen.penalty,
        **({"decode_speedup": speeds[counted]["decode_ms"]["speedup"]} if speeds else {}),
        "kl": fused.kl.mean().item(),
    }


def scenarios_of(settings: FuseSettings, config: ModelConfig, device: str) -> Sequence[Scenario]:
    """Return where times are measured. Raises `ValueError` for what the engine does not serve."""
    label = device.split(":")[0]
    scenarios = parse_scenarios(settings.scenario or f"{SCENARIO},device={label}")
    for scenario in scenarios:
        scenario.check_context(config.max_position_embeddings)
        torch_dtype(scenario.dtype)
    return scenarios


def speed_up(text: str) -> Target | None:
    """Read a target, if there is any. Raises `ValueError` for one of another kind."""
    if not text:
        return None
    target = Target.parse(text)
    if target.unit != "speedup":
        raise ValueError(
            f"fuse: target {text!r}; fusing saves time, so give a speed-up such as '1.05x decode'"
        )
    return target


def scenario_counted(scenarios: Sequence[Scenario], target: Target | None) -> Scenario:
    """Return the scenario that counts for the choice: the first, or the one the target names."""
    if target is None or not target.at:
        return scenarios[0]
    named = [one for one in scenarios if one.agrees(target.at)]
    if not named:
        measured = "; ".join(map(str, scenarios))
        raise ValueError(f"fuse: target {target} names no scenario that is measured: {measured}")
    return named[0]
