"""Who scores groups of FFNs: the model and its texts, opened once, then one group after another.

A group's fused FFN is built, its down matrix refitted so that the state after it nears what the
FFNs gave one after another, and the rest of the model replayed from there.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.distributed.task import Tell
from fretsaw.model.decoder import Block, Decoder
from fretsaw.puzzle.library.alternatives import Calibration, Refit, Trial, calibrate
from fretsaw.puzzle.library.fusion import fuse_blocks
from fretsaw.puzzle.library.replay import Replay, subblock
from fretsaw.puzzle.library.runs import Group, fused_shape, members
from fretsaw.puzzle.scores.scorer import heldout_rows
from fretsaw.puzzle.settings import FuseSettings


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


def open_calibration(
    decoder: Decoder, settings: FuseSettings, inputs: Mapping[str, Path]
) -> Calibration:
    """Return the training text on which fused FFNs are repaired."""
    tokens = settings.repair_tokens or 2 * settings.seq_len
    return calibrate(decoder, inputs["corpus"], tokens, settings.seq_len, settings.batch_rows)


class FusionScorer:
    """The model and its texts, walking through its layers: scores one group at a time.

    Groups may come in any order; what lies behind costs a walk from the start.
    """

    @torch.inference_mode()
    def __init__(self, settings: FuseSettings, inputs: Mapping[str, Path], device: str):
        self.settings, self.inputs = settings, inputs
        self.decoder = checkpoint.load(inputs["model"], device=device)
        self.windows = heldout_rows(settings, inputs).to(device)
        self._open()

    def _open(self) -> None:
        self.calibration = open_calibration(self.decoder, self.settings, self.inputs)
        self.replay = Replay(self.decoder, self.windows, self.settings.batch_rows)

    @torch.inference_mode()
    def __call__(self, group: Group, tell: Tell) -> dict[str, Any]:
        """Return the group's `figures` by name, lists over rows, and its `repair`."""
        first, num_subblocks = 2 * group.first + 1, 2 * (group.last - group.first) + 1
        if self.replay.frontier.at > first:
            self._open()
        while self.replay.frontier.at < first:
            self.calibration.walk()
            self.replay.frontier.walk()
        block = fused_block(self.decoder, group, self.settings)
        refit = self._repair(block, num_subblocks)
        states = self.replay.frontier.after([subblock(block, "ffn")])
        figures = self.replay.figures(states, first + num_subblocks).as_lists()
        return {"repair": asdict(refit) if refit else None, "figures": figures}

    def _repair(self, block: Block, num_subblocks: int) -> Refit | None:
        if not self.settings.repair_tokens:
            return None
        wanted = self.calibration.wanted(num_subblocks)
        return Trial(self.calibration).append(block, "ffn", wanted, num_subblocks)


@torch.inference_mode()
def build_fused(
    decoder: Decoder, groups: tuple[Group, ...], settings: FuseSettings, calibration: Calibration
) -> tuple[list[Block], list[Refit | None]]:
    """Return every group's fused block, repaired on the states of the model as fused so far.

    `calibration` stands before the decoder's first subblock, and is walked.
    """
    by_first = {group.first: group for group in groups}
    trial = Trial(calibration)
    fused: list[Block] = []
    refits: list[Refit | None] = []
    last = max((group.last for group in groups), default=-1)
    i = 0
    while i <= last:
        block = decoder.model.layers[i]
        assert isinstance(block, Block)
        group = by_first.get(i)
        trial.append(block, "attention", None)
        calibration.walk()
        if group is None:
            trial.append(block, "ffn", None)
            calibration.walk()
            i += 1
            continue
        num_subblocks = 2 * (group.last - group.first) + 1
        fused.append(fused_block(decoder, group, settings))
        wanted = calibration.wanted(num_subblocks) if settings.repair_tokens else None
        refits.append(trial.append(fused[-1], "ffn", wanted, num_subblocks))
        for _ in range(num_subblocks):
            calibration.walk()
        i = group.last + 1
    return fused, refits
