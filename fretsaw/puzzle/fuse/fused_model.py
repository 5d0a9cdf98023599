"""A model with groups of its FFNs fused: built, repaired, and measured as a whole.

A group's down matrix is refitted so that the state after it nears what the FFNs gave one after
another, on the states of the model as fused so far.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.beside import Layers
from fretsaw.checkpoint.llama import DTYPE_NAMES
from fretsaw.model.decoder import Block, Decoder
from fretsaw.puzzle.fuse.grouping import Grouping
from fretsaw.puzzle.library.alternatives import Calibration, Refit, Trial
from fretsaw.puzzle.library.fusion import fuse_blocks, with_fused
from fretsaw.puzzle.library.replay import Replay
from fretsaw.puzzle.library.runs import Group, fused_shape, layers_of, members
from fretsaw.puzzle.scores.scorer import open_calibration
from fretsaw.puzzle.settings import FuseSettings
from fretsaw.stage.execute import StageRun


@dataclass(frozen=True)
class FusedModel:
    """What fusing a grouping gives, and how far that is from the model before."""

    grouping: Grouping
    decoder: Decoder
    layers: Layers  # where they stand in the model before
    refits: Sequence[Refit | None]  # of its groups
    kl: Float[Tensor, " rows"]  # KL(model || fused), nats a token


def fused_block(decoder: Decoder, group: Group, settings: FuseSettings) -> Block:
    """Return the group's FFNs as one, before any repair."""
    blocks = decoder.config.blocks
    parts = [decoder.model.layers[i] for i in members(blocks, group)]
    return fuse_blocks(
        [part for part in parts if isinstance(part, Block)],
        decoder.config,
        fused_shape(blocks, group),
        settings.norm,
    )


def append_fused(trial: Trial, block: Block, group: Group, settings: FuseSettings) -> Refit | None:
    """Let a fused block stand for its group in the trial, repaired where that is asked for."""
    num_subblocks = group.num_subblocks
    wanted = trial.calibration.fit.later(num_subblocks) if settings.repair_tokens else None
    return trial.append(block, "ffn", wanted, num_subblocks)


def fuse_groups(
    decoder: Decoder, groups: Sequence[Group], settings: FuseSettings, calibration: Calibration
) -> tuple[list[Block], list[Refit | None]]:
    """Return the fused block of every group, first layers first, and what its repair did.

    `calibration` stands before the decoder's first subblock, and is walked.
    """
    trial = Trial(calibration)
    fused: list[Block] = []
    refits: list[Refit | None] = []
    for group in groups:
        while (at := calibration.fit.at) < group.start:
            block = decoder.model.layers[at.layer]
            assert isinstance(block, Block)
            trial.append(block, at.half, None)
            calibration.walk()
        fused.append(fused_block(decoder, group, settings))
        refits.append(append_fused(trial, fused[-1], group, settings))
        calibration.walk_to(group.start + group.num_subblocks)
    return fused, refits


@torch.inference_mode()
def build(
    decoder: Decoder,
    grouping: Grouping,
    settings: FuseSettings,
    inputs: Mapping[str, Path],
    windows: Int[Tensor, "rows seq_plus_1"],
) -> FusedModel:
    """Return the model with a grouping fused.

    New weights are rounded to the precision in which they will be written before they are measured.
    """
    calibration = open_calibration(decoder, settings, inputs)
    blocks, refits = fuse_groups(decoder, grouping.groups, settings, calibration)
    written = getattr(torch, DTYPE_NAMES[checkpoint.read_dtype(inputs["model"])])
    for weight in (weight for block in blocks for weight in block.parameters()):
        weight.copy_(weight.to(written))
    fused = with_fused(decoder, grouping.groups, blocks, keeps_layers=settings.keep_layers)
    num_layers = decoder.config.num_hidden_layers
    stood = layers_of(num_layers, grouping.groups, keeps_layers=settings.keep_layers)
    kl = Replay(decoder, windows, settings.batch_rows).figures_of(fused).kl
    return FusedModel(grouping, fused, Layers(num_layers, tuple(stood)), refits, kl)


def build_first_within(
    decoder: Decoder,
    wanted: Sequence[Grouping],
    settings: FuseSettings,
    inputs: Mapping[str, Path],
    windows: Int[Tensor, "rows seq_plus_1"],
    run: StageRun,
) -> tuple[FusedModel, list[dict[str, Any]]]:
    """Return the first that holds `max_kl`, or the last, and every grouping's KL on the way there.

    A whole may cost more than the sum of its parts.
    """
    tried: list[dict[str, Any]] = []
    run.progress.start("building", len(wanted), unit="grouping")
    fused = None
    for grouping in wanted:
        fused = build(decoder, grouping, settings, inputs, windows)
        kl = fused.kl.mean().item()
        tried.append({"groups": [str(group) for group in grouping.groups], "kl": kl})
        run.step(len(tried), {"kl": kl})
        if kl <= settings.max_kl:
            break
    assert fused is not None, "nothing to build"
    return fused, tried
