"""What the fuse stage writes beside the fused weights, and what it says of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.beside import Layers, read_layers, write_layers, write_precisions
from fretsaw.data.by_source import Shares, means_by_source
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.puzzle.fuse.candidates import NO_RUNS
from fretsaw.puzzle.fuse.dependency import block_dependency
from fretsaw.puzzle.fuse.fused_model import FusedModel
from fretsaw.puzzle.fuse.fused_times import FusedTimes, Speeds
from fretsaw.puzzle.fuse.grouping import Grouping
from fretsaw.puzzle.library.alternatives import refit_row
from fretsaw.puzzle.library.runs import Group, find_runs, fused_shape
from fretsaw.puzzle.scores.scoreboard import Scoreboard
from fretsaw.puzzle.settings import FuseSettings
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.stage.whole import write_json

FUSION, DEPENDENCY = "fusion.json", "dependency.json"


def group_rows(
    groups: Sequence[Group],
    config: ModelConfig,
    board: Scoreboard,
    times: Mapping[Scenario, FusedTimes],
) -> list[dict[str, Any]]:
    """Return what every group is, costs and saves."""
    return [
        {
            "group": str(group),
            "width": fused_shape(config.blocks, group).intermediate_size,
            "kl": board.mean(number, (str(group),), "kl"),
            "stderr": board.stderr(number, (str(group),), "kl"),
            "repair": board.repairs[number, (str(group),)],
            "saved": {str(scenario): dict(one.savings[group]) for scenario, one in times.items()},
        }
        for number, group in enumerate(groups)
    ]


def grouping_row(one: Grouping) -> dict[str, Any]:
    """Return what groups together are foretold to cost and save."""
    return {
        "groups": [str(group) for group in one.groups],
        "kl_sum": one.penalty,
        "saved_ms": one.saving,
    }


def chosen_row(fused: FusedModel, shares: Shares) -> dict[str, Any]:
    """Return what was foretold of the groups that were fused, and what was measured."""
    by_source = means_by_source(fused.kl.cpu().numpy(), shares)
    return {
        **grouping_row(fused.grouping),
        "kl": fused.kl.mean().item(),
        "stderr": fused.kl.std().item() / len(fused.kl) ** 0.5,
        **({"by_source": by_source} if by_source else {}),
        "repairs": [refit_row(refit) for refit in fused.refits],
    }


def foretold_rows(times: Mapping[Scenario, FusedTimes]) -> dict[str, Any]:
    """Return how well the time of the model with most fused was foretold, by scenario."""
    return {
        str(scenario): {"error": dict(one.error), "noise": dict(one.noise)}
        for scenario, one in times.items()
    }


def write_checkpoint(folder: Path, fused: FusedModel, serving: ModelConfig, model: Path) -> None:
    """Write the fused weights, in what they are served, and where the layers stand.

    They stand in the model before, or in the one that this one came from.
    """
    checkpoint.write(fused.decoder, folder, like=model, dtype=checkpoint.read_dtype(model))
    write_precisions(folder, serving.blocks)
    if (before := read_layers(model)) is not None:
        write_layers(folder, Layers(before.of, tuple(before.after[i] for i in fused.layers.after)))
    else:
        write_layers(folder, fused.layers)


def write_dependency(
    decoder: Decoder,
    settings: FuseSettings,
    windows: Int[Tensor, "rows seq_plus_1"],
    run: StageRun,
) -> None:
    """Write the block-dependency matrix, null where there is nothing to compare."""
    token_ids = windows[: max(1, settings.dependency_tokens // settings.seq_len), :-1]
    run.progress.start("watching", len(decoder.config.blocks), unit="block")
    matrix = block_dependency(
        decoder, token_ids, settings.batch_rows, lambda done: run.step(done, row=False)
    )
    write_json(
        run.folder / DEPENDENCY,
        {
            "what": "cosine distance of what block j adds, with and without block i; row i",
            "tokens": token_ids.numel(),
            "matrix": [[None if x != x else x for x in row] for row in matrix.tolist()],
        },
    )


def say_what_is_fused(
    fused: FusedModel, before: ModelConfig, speeds: Speeds, *, is_told: bool
) -> None:
    """Print what was fused, what it costs and what it saves; `is_told` where a search chose."""
    chosen = fused.grouping
    if not chosen.groups:
        why = "no group is worth its KL, or the rule finds none"
        if is_told:
            why = "the search fuses nothing"
        elif not find_runs(before.blocks):
            why = NO_RUNS
        return say(f"fuse: nothing is fused; {why}")
    which = ", ".join(str(group) for group in chosen.groups)
    saved = "; ".join(
        f"{phase.removesuffix('_ms')} {row['speedup']:.3f}x at batch {scenario.batch} (noise "
        f"{row['noise']:.1%})"
        for scenario, phases in speeds.items()
        for phase, row in phases.items()
    )
    layers = f"{before.num_hidden_layers} -> {fused.decoder.config.num_hidden_layers} layers"
    say(
        f"fuse: {which} fused, {layers}, KL {fused.kl.mean().item():.5f} "
        f"(sum of groups {chosen.penalty:.5f}); {saved}"
    )
