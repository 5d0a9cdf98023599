"""Who scores groups of FFNs: the model and its texts, opened once, then one group after another.

A group's fused FFN is built and repaired, and the rest of the model replayed from there.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.distributed.fanout import fan_out
from fretsaw.distributed.task import Tell
from fretsaw.puzzle.fuse.fused_model import append_fused, fused_block
from fretsaw.puzzle.library.alternatives import Trial, refit_row
from fretsaw.puzzle.library.replay import Replay, subblock
from fretsaw.puzzle.library.runs import Group
from fretsaw.puzzle.scores.scoreboard import Scoreboard
from fretsaw.puzzle.scores.scorer import heldout_rows, open_calibration
from fretsaw.puzzle.settings import FuseSettings
from fretsaw.stage.execute import StageRun


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
        if group.start < self.replay.frontier.at:
            self._open()
        self.calibration.walk_to(group.start)
        self.replay.frontier.walk_to(group.start)
        block = fused_block(self.decoder, group, self.settings)
        refit = append_fused(Trial(self.calibration), block, group, self.settings)
        states = self.replay.frontier.after([subblock(block, "ffn")])
        figures = self.replay.figures(states, group.start + group.num_subblocks).as_lists()
        return {"repair": refit_row(refit), "figures": figures}


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
