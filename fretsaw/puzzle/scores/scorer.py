"""Who scores: the parent and its texts, opened once, and then one alternative after another."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fretsaw.data import loader
from fretsaw.distributed.task import Tell
from fretsaw.model.config import ModelConfig, without_precision
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import gradient_bytes
from fretsaw.puzzle.bld.layer_files import read_trained
from fretsaw.puzzle.library.alternatives import (
    Calibration,
    Change,
    Trial,
    calibrate,
    judging_text,
    make_change,
    open_parent,
    quantised_change,
    refit_row,
)
from fretsaw.puzzle.library.fusion import fuse_blocks
from fretsaw.puzzle.library.replay import Replay, subblock
from fretsaw.puzzle.library.runs import Group, fused_width
from fretsaw.puzzle.library.sensitivity import Sensitivity, parts, write_part
from fretsaw.puzzle.library.slices import Trained
from fretsaw.puzzle.scores.exam import Exam
from fretsaw.puzzle.scores.replacements import GradientPart, Replacement, Text, span_of
from fretsaw.puzzle.scores.scoreboard import Names
from fretsaw.puzzle.settings import FuseSettings, ScoreSettings
from fretsaw.stage.artifact import require_disk

VALID_KL = 0.3  # nats a token; above it the estimate does not hold


class Scorer:
    """The parent and its texts, walking through its subblocks: scores one alternative at a time.

    They may come in any order; what lies behind costs a walk from the start. `gradients` is the
    folder of those that estimates rest on.
    """

    @torch.inference_mode()
    def __init__(
        self,
        settings: ScoreSettings,
        inputs: Mapping[str, Path],
        device: str,
        seed: int,
        gradients: Path,
    ):
        self.settings, self.inputs, self.seed, self.gradients = settings, inputs, seed, gradients
        self.parent = open_parent(inputs, device)
        self.windows = heldout_rows(settings, inputs).to(device)
        self.exam = None
        if settings.metric == "accuracy":
            self.exam = Exam(self.parent, inputs["parent"], settings, inputs.get("problems"), seed)
        self.made: tuple[tuple, Change] | None = None  # the last change in full precision
        self.rows: tuple[int, int] | None = None
        self.layer = -1
        self.trained: Trained = {}  # of that layer

    @torch.inference_mode()
    def __call__(self, wanted: Replacement | GradientPart, tell: Tell) -> dict[str, Any]:
        """Return an alternative's `figures` by name, lists over rows, and its own `repair`."""
        if isinstance(wanted, GradientPart):
            return self._write_gradients(wanted)
        self.stand_before(wanted)
        if (span := span_of(wanted.names)) is not None:
            return self._fused(span)
        change = quantised_change(self._full(wanted), wanted.names, wanted.at, self.parent.config)
        states = self.replay.frontier.after(change.subblocks)
        end = wanted.at + len(change.subblocks)
        figures: dict[str, list[float]] = {}
        if wanted.by_estimate:
            estimate = self.estimate.kl(states, end)
            figures["estimate"] = estimate.tolist()
        if not wanted.by_estimate or estimate.mean() > VALID_KL:
            figures |= self.replay.figures(states, end).as_lists()
        if self.exam is not None and wanted.rows[0] == 0:
            figures["accuracy"] = self.exam.lost(change).tolist()
        return {"repair": refit_row(change.refits[0]), "figures": figures}

    def _write_gradients(self, part: GradientPart) -> dict[str, Any]:
        ids, draws = gradient_text(part.text, self.settings, self.inputs)
        folder = self.gradients / part.text
        write_part(self.parent, ids.to(self.parent.device), part.first, draws, self.seed, folder)
        return {}

    def _full(self, wanted: Replacement) -> Change:
        """Return the change in full precision; it is made once for all precisions of its names."""
        names, settings = tuple(map(without_precision, wanted.names)), self.settings
        if self.made is None or self.made[0] != (wanted.rows, wanted.at, names):
            change = make_change(
                self.parent,
                names,
                self.calibration,
                ahead=settings.ahead,
                repair=settings.repair_tokens > 0,
                trained=self.trained,
            )
            self.made = (wanted.rows, wanted.at, names), change
        return self.made[1]

    def _fused(self, span: Group) -> dict[str, Any]:
        """Return how much further the parent moves where these FFNs are fused, than where only the
        attention between them is removed.
        """
        config = self.parent.config
        names = [config.blocks[span.first].ffn_name]
        for i in span.layers[1:]:
            names += ["attn_none", config.blocks[i].ffn_name]
        repairs = self.settings.repair_tokens > 0
        apart = make_change(self.parent, names, self.calibration, repair=repairs)
        width = fused_width(config.blocks, span)
        shape = replace(apart.shapes[span.first], intermediate_size=width)
        fused = fuse_blocks([apart.blocks[i] for i in span.layers], config, shape)
        refit = None
        if repairs:
            wanted = self.calibration.fit.after(apart.subblocks)
            refit = Trial(self.calibration).append(fused, "ffn", wanted, len(names))
        frontier, end = self.replay.frontier, span.start + len(names)
        before = self.replay.figures(frontier.after(apart.subblocks), end).as_lists()
        after = self.replay.figures(frontier.after([subblock(fused, "ffn")]), end).as_lists()
        figures = {
            name: [a - b for a, b in zip(after[name], before[name], strict=True)] for name in after
        }
        return {"repair": refit_row(refit), "figures": figures}

    def stand_before(self, wanted: Replacement) -> None:
        """Walk both texts to where it goes, and read what that layer has been trained to."""
        if wanted.rows != self.rows or wanted.at < self.replay.frontier.at:
            gradients = self.gradients / "judge" if self.settings.judges_by_estimate else None
            self.calibration = open_calibration(self.parent, self.settings, self.inputs, gradients)
            rows = self.windows[slice(*wanted.rows)]
            self.replay = Replay(self.parent, rows, self.settings.batch_rows)
            self.estimate = Sensitivity(self.replay.frontier, self.gradients / "score")
            self.rows = wanted.rows
        self.calibration.walk_to(wanted.at)
        self.replay.frontier.walk_to(wanted.at)
        if "library" in self.inputs and wanted.at.layer != self.layer:
            self.layer = wanted.at.layer
            self.trained = read_trained(self.inputs["library"], self.layer)


def is_estimated(names: Names, settings: ScoreSettings) -> bool:
    """Whether this is scored by the estimate: one subblock replaced by another."""
    return len(names) == 1 and span_of(names) is None and settings.scores_by_estimate


def gradient_text(
    text: Text, settings: ScoreSettings, inputs: Mapping[str, Path]
) -> tuple[Int[Tensor, "rows seq"], int]:
    """Return the text whose gradients are wanted, and how many draws of them."""
    if text == "judge":
        return judging_text(inputs["corpus"], settings.repair_tokens, settings.seq_len)
    ids = heldout_rows(settings, inputs)[:, :-1]
    return ids, settings.scoring_draws(len(ids))


def gradient_parts(
    settings: ScoreSettings, inputs: Mapping[str, Path], config: ModelConfig, folder: Path
) -> list[GradientPart]:
    """Return what gradients the estimates of these settings rest on, to be written to `folder`.

    Raises `ValueError` where the disk has no room for them.
    """
    texts: dict[Text, bool] = {
        "judge": settings.judges_by_estimate,
        "score": settings.scores_by_estimate,
    }
    wanted, num_bytes = [], 0.0
    for text, is_needed in texts.items():
        if is_needed:
            ids, draws = gradient_text(text, settings, inputs)
            if not (folder / text).exists():
                num_bytes += gradient_bytes(config, ids.numel(), draws)
            wanted += [GradientPart(text, first) for first in parts(config, ids.shape, draws)]
    require_disk(folder, int(num_bytes))
    return wanted


def open_calibration(
    decoder: Decoder,
    settings: ScoreSettings | FuseSettings,
    inputs: Mapping[str, Path],
    gradients: Path | None = None,
) -> Calibration:
    """Return the training text on which what is scored is repaired."""
    tokens = settings.repair_tokens or 2 * settings.seq_len
    return calibrate(
        decoder, inputs["corpus"], tokens, settings.seq_len, settings.batch_rows, gradients
    )


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
