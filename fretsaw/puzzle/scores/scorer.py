"""Who scores: the parent and its texts, opened once, and then one alternative after another."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.distributed.task import Tell
from fretsaw.model.config import without_precision
from fretsaw.puzzle.bld.layer_files import read_trained
from fretsaw.puzzle.library.alternatives import (
    Change,
    Trial,
    calibrate,
    make_change,
    quantised_change,
)
from fretsaw.puzzle.library.fusion import fuse_blocks
from fretsaw.puzzle.library.ranking import read_orders
from fretsaw.puzzle.library.replay import Replay, subblock
from fretsaw.puzzle.library.runs import Group
from fretsaw.puzzle.library.slices import Trained, sort_parent
from fretsaw.puzzle.scores.exam import Exam
from fretsaw.puzzle.scores.scoreboard import Names
from fretsaw.puzzle.settings import FuseSettings, ScoreSettings


@dataclass(frozen=True)
class Task:
    """Names to put in place of the subblocks from number `at` on, judged on some rows of text.

    One name such as "3-5" stands for the FFNs of those layers fused, no attention between them.
    """

    rows: tuple[int, int]
    at: int
    names: Names


def span_of(names: Names) -> Group | None:
    """Return the layers whose FFNs are fused, where that is what the names say."""
    return Group.parse(names[0]) if "-" in names[0] else None


class Scorer:
    """The parent and its texts, walking through its subblocks: scores one alternative at a time.

    Tasks may come in any order; what lies behind costs a walk from the start.
    """

    @torch.inference_mode()
    def __init__(self, settings: ScoreSettings, inputs: Mapping[str, Path], device: str, seed: int):
        self.settings, self.inputs = settings, inputs
        self.parent = checkpoint.load(inputs["parent"], device=device)
        sort_parent(
            self.parent, read_orders(inputs["ranking"], self.parent.config.num_hidden_layers)
        )
        self.windows = heldout_rows(settings, inputs).to(device)
        self.exam = None
        if settings.metric == "accuracy":
            self.exam = Exam(self.parent, inputs["parent"], settings, inputs.get("problems"), seed)
        self.made: tuple[tuple, Change] | None = None  # the last change in full precision
        self.rows: tuple[int, int] | None = None
        self.layer = -1
        self.trained: Trained = {}  # of that layer

    @torch.inference_mode()
    def __call__(self, task: Task, tell: Tell) -> dict[str, Any]:
        """Return an alternative's `figures` by name, lists over rows, and its own `repair`."""
        self._stand_before(task)
        if (span := span_of(task.names)) is not None:
            return self._fused(span)
        change = quantised_change(self._full(task), task.names, task.at, self.parent.config)
        states = self.replay.frontier.after(change.subblocks)
        figures = self.replay.figures(states, task.at + len(change.subblocks)).as_lists()
        if self.exam is not None and task.rows[0] == 0:
            figures["accuracy"] = self.exam.lost(change).tolist()
        own = change.refits[0]
        return {"repair": asdict(own) if own else None, "figures": figures}

    def _full(self, task: Task) -> Change:
        """Return the change in full precision; it is made once for all precisions of its names."""
        names, settings = tuple(map(without_precision, task.names)), self.settings
        if self.made is None or self.made[0] != (task.rows, task.at, names):
            change = make_change(
                self.parent,
                names,
                self.calibration,
                ahead=settings.ahead,
                repair=settings.repair_tokens > 0,
                trained=self.trained,
            )
            self.made = (task.rows, task.at, names), change
        return self.made[1]

    def _fused(self, span: Group) -> dict[str, Any]:
        """Return how much further the parent moves where these FFNs are fused, than where only the
        attention between them is removed.
        """
        config, at = self.parent.config, 2 * span.first + 1
        names = [config.blocks[span.first].ffn_name]
        for i in span.layers[1:]:
            names += ["attn_none", config.blocks[i].ffn_name]
        repairs = self.settings.repair_tokens > 0
        apart = make_change(self.parent, names, self.calibration, repair=repairs)
        shapes = [apart.shapes[i] for i in span.layers]
        width = sum(shape.intermediate_size for shape in shapes)
        fused = fuse_blocks(
            [apart.blocks[i] for i in span.layers],
            config,
            replace(shapes[0], intermediate_size=width),
        )
        refit = None
        if repairs:
            wanted = self.calibration.fit.after(apart.subblocks)
            refit = Trial(self.calibration).append(fused, "ffn", wanted, len(names))
        frontier, end = self.replay.frontier, at + len(names)
        before = self.replay.figures(frontier.after(apart.subblocks), end).as_lists()
        after = self.replay.figures(frontier.after([subblock(fused, "ffn")]), end).as_lists()
        figures = {
            name: [a - b for a, b in zip(after[name], before[name], strict=True)] for name in after
        }
        return {"repair": asdict(refit) if refit else None, "figures": figures}

    def _stand_before(self, task: Task) -> None:
        """Walk both texts to the task's subblock, and read what its layer has been trained to."""
        settings = self.settings
        if task.rows != self.rows or task.at < self.replay.frontier.at:
            self.calibration = calibrate(
                self.parent,
                self.inputs["corpus"],
                settings.repair_tokens or 2 * settings.seq_len,
                settings.seq_len,
                settings.batch_rows,
            )
            rows = self.windows[slice(*task.rows)]
            self.replay = Replay(self.parent, rows, settings.batch_rows)
            self.rows = task.rows
        while self.replay.frontier.at < task.at:
            self.calibration.walk()
            self.replay.frontier.walk()
        if "library" in self.inputs and task.at // 2 != self.layer:
            self.layer = task.at // 2
            self.trained = read_trained(self.inputs["library"], self.layer)


def heldout_rows(
    settings: ScoreSettings | FuseSettings, inputs: Mapping[str, Path]
) -> Int[Tensor, "rows seq_plus_1"]:
    """Return the text on which is scored. Raises `ValueError` where it is one row."""
    heldout = inputs["corpus"] / "heldout.npy"
    rows = loader.first_rows(heldout, settings.seq_len, settings.tokens)
    if len(rows) < 2:
        raise ValueError(
            f"{inputs['corpus']}: holds out {len(rows)} row of seq_len {settings.seq_len}, and one "
            "row has no standard error; give more held-out text or shorter rows"
        )
    return torch.from_numpy(rows)
