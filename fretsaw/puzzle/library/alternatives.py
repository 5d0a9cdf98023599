"""An alternative as it is scored: built from the parent and repaired, and what follows it too.

At assembly every output matrix after a change is refitted to the parent's states. So a change is
worth what is left of it after that, not what it does to an unprepared parent: the next `ahead`
subblocks are refitted before an alternative is judged. A refit lowers the squared error of the
states, which is not what counts in the end; it stays only where it lowers the KL as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.kinds import Half
from fretsaw.model.place import HALVES, Place
from fretsaw.model.quantised import quantised_block
from fretsaw.model.size import gradient_bytes
from fretsaw.model.subblock import names_of
from fretsaw.puzzle.library import repair
from fretsaw.puzzle.library.ranking import read_orders
from fretsaw.puzzle.library.replay import Frontier, Move, Replay, subblock
from fretsaw.puzzle.library.sensitivity import Sensitivity, write_gradients
from fretsaw.puzzle.library.slices import Trained, alternative, sort_parent
from fretsaw.puzzle.settings import judging_draws
from fretsaw.stage.artifact import require_disk
from fretsaw.stage.execute import StageRun


@dataclass(frozen=True)
class Refit:
    """What refitting an output matrix did to the KL from the parent, on text of its own."""

    ridge: float | None  # None: it was left as it was
    kl_before: float
    kl_after: float


def refit_row(refit: Refit | None) -> dict[str, float | None] | None:
    """Return a refit as it is written; None where none was offered."""
    return asdict(refit) if refit else None


@dataclass(frozen=True)
class Change:
    """Blocks that stand in for the parent's, and the subblocks of theirs that differ, in order."""

    blocks: Mapping[int, Block]  # by layer
    shapes: Mapping[int, BlockConfig]  # theirs
    subblocks: Sequence[Move]  # from the replaced one to the last that was offered a refit
    refits: Sequence[Refit | None]  # of each of them; None where none was offered


class Calibration:
    """The texts on which changes are repaired: one to fit, one to judge each refit by.

    Both stand before a subblock of the parent and walk.
    """

    def __init__(self, fit: Frontier, judge: Replay | Sensitivity):
        self.fit, self.judge = fit, judge

    def walk(self) -> None:
        """Go through the parent's next subblock."""
        self.fit.walk()
        self.judge.frontier.walk()

    def walk_to(self, at: Place) -> None:
        """Go on to before the parent's subblock `at`."""
        while self.fit.at < at:
            self.walk()


@torch.inference_mode(False)  # so that gradients can be taken through its weights
def open_parent(inputs: Mapping[str, Path], device: str) -> Decoder:
    """Return the parent, sorted by its ranking."""
    parent = checkpoint.load(inputs["parent"], device=device).requires_grad_(False)
    sort_parent(parent, read_orders(inputs["ranking"], parent.config.num_hidden_layers))
    return parent


def calibration_texts(
    corpus: Path, tokens: int, seq_len: int
) -> tuple[Int[Tensor, "rows seq_plus_1"], Int[Tensor, "fewer_rows seq_plus_1"]]:
    """Return the texts to fit and to judge by, from the training part: `tokens` and an eighth.

    Raises `ValueError` where there are not even two rows.
    """
    windows = torch.from_numpy(loader.calibration_rows(corpus, seq_len, tokens * 9 // 8))
    if len(windows) < 2:
        raise ValueError(
            f"calibration: {len(windows) * seq_len} tokens of {corpus} are one row of seq_len "
            f"{seq_len}; repair needs two at least, so give more text or shorter rows"
        )
    num_judging = max(1, len(windows) // 9)
    return windows[:-num_judging], windows[-num_judging:]


def calibrate(
    parent: Decoder,
    corpus: Path,
    tokens: int,
    seq_len: int,
    batch_rows: int,
    gradients: Path | None = None,
) -> Calibration:
    """Return both texts; refits are judged by the `gradients` of the second, else by replay.

    Raises `ValueError` where there are not even two rows.
    """
    fit, judging = (t.to(parent.device) for t in calibration_texts(corpus, tokens, seq_len))
    if gradients is None:
        judge = Replay(parent, judging, batch_rows)
    else:
        judge = Sensitivity(Frontier(parent, judging[:, :-1], batch_rows), gradients)
    return Calibration(Frontier(parent, fit[:, :-1], batch_rows), judge)


def judging_text(corpus: Path, tokens: int, seq_len: int) -> tuple[Int[Tensor, "rows seq"], int]:
    """Return the text on which refits are judged, and how many draws of its gradients it takes."""
    ids = calibration_texts(corpus, tokens, seq_len)[1][:, :-1]
    return ids, judging_draws(len(ids))


def judge_gradients(
    parent: Decoder, corpus: Path, tokens: int, seq_len: int, run: StageRun
) -> Path:
    """Return where the gradients are that judge refits by estimate; those missing are made."""
    ids, draws = judging_text(corpus, tokens, seq_len)
    require_disk(run.folder, int(gradient_bytes(parent.config, ids.numel(), draws)))
    folder = run.resume_folder / "judge"
    run.progress.start("differentiating", len(ids), unit="row")
    ids = ids.to(parent.device)
    write_gradients(parent, ids, draws, run.seed, folder, lambda done: run.step(done, row=False))
    return folder


class Trial:
    """A changed model as it grows, subblock by subblock: its states on both texts.

    They are computed when they are needed, so never behind the last subblock of a trial.
    """

    def __init__(self, calibration: Calibration):
        self.calibration, self.at = calibration, calibration.fit.at
        self._fitted = calibration.fit.states
        self._judged = calibration.judge.frontier.states
        self._open: list[Move] = []  # not gone through yet

    @property
    def states(self) -> Float[Tensor, "rows seq hidden"]:
        """The changed model's states on the text to fit, after all that was appended."""
        self._go_on()
        return self._fitted

    def append(
        self,
        block: Block,
        half: Half,
        wanted: Float[Tensor, "rows seq hidden"] | None,
        num_subblocks: int = 1,
    ) -> Refit | None:
        """Add a half of `block`, refitted in place to the parent's `wanted` states first.

        It stands for `num_subblocks` of the parent's. Returns what the refit did; None without
        `wanted` or without a matrix to refit.
        """
        refit = None if wanted is None else self._refit(block, half, wanted, num_subblocks)
        self._open.append(subblock(block, half))
        self.at += num_subblocks
        return refit

    def _go_on(self) -> None:
        if self._open:
            self._fitted = self.calibration.fit.after(self._open, self._fitted)
            self._judged = self.calibration.judge.frontier.after(self._open, self._judged)
            self._open = []

    def _refit(
        self,
        block: Block,
        half: Half,
        wanted: Float[Tensor, "rows seq hidden"],
        num_subblocks: int,
    ) -> Refit | None:
        fit, judge = self.calibration.fit, self.calibration.judge
        matrix = repair.output_matrix(block, half)
        if matrix is None:
            return None
        self._go_on()

        def kl() -> float:
            after = judge.frontier.after([subblock(block, half)], self._judged)
            return judge.kl(after, self.at + num_subblocks).mean().item()

        before, weight = kl(), matrix.weight.clone()
        pairs = zip(self._fitted.split(fit.batch_rows), wanted.split(fit.batch_rows), strict=True)
        repaired = repair.repair(block, half, pairs, fit.context)
        assert repaired is not None, "there is a matrix to repair"
        if repaired.ridge is not None and (after := kl()) < before:
            return Refit(repaired.ridge, before, after)
        matrix.weight.copy_(weight)
        return Refit(None, before, before)


@torch.inference_mode()
def make_change(
    parent: Decoder,
    names: Sequence[str],
    calibration: Calibration,
    *,
    ahead: int = 0,
    repair: bool = True,
    trained: Trained | None = None,
) -> Change:
    """Return the change that replaces the next subblocks of the parent by `names`.

    They and the `ahead` subblocks after them are refitted in closed form, each on the changed
    model's own states. Without `repair`, or where `names` are the parent's own, nothing is.
    `trained` are the layer's alternatives that block distillation has trained.
    """
    config, start = parent.config, calibration.fit.at
    renamed = _from(start, names)
    own_names = [name for block in config.blocks for name in names_of(block)]
    is_refitted = repair and list(names) != own_names[start.number :][: len(names)]
    count = min(len(names) + ahead, len(own_names) - start.number) if is_refitted else len(names)
    trial = Trial(calibration)
    blocks: dict[int, Block] = {}
    shapes: dict[int, BlockConfig] = {}
    moves, refits = [], []
    for number in range(count):
        at = start + number
        if at.layer not in blocks:
            source = parent.model.layers[at.layer]
            assert isinstance(source, Block)
            shape = shapes[at.layer] = _shape(config.blocks[at.layer], at.layer, renamed)
            weights = trained if trained and at.layer == start.layer else {}
            blocks[at.layer] = alternative(source, config, shape, at.layer, weights)
        wanted = calibration.fit.later(number + 1) if is_refitted else None
        refits.append(trial.append(blocks[at.layer], at.half, wanted))
        moves.append(subblock(blocks[at.layer], at.half))
    return Change(blocks, shapes, moves, refits)


def quantised_change(
    change: Change, names: Sequence[str], start: Place, config: ModelConfig
) -> Change:
    """Return the change with the subblocks from `start` on in the precisions of `names`."""
    if all("@" not in name for name in names):
        return change
    renamed = _from(start, names)
    blocks, shapes, moves = {**change.blocks}, {**change.shapes}, [*change.subblocks]
    for layer in sorted({at.layer for at in renamed}):
        shapes[layer] = _shape(shapes[layer], layer, renamed)
        blocks[layer] = quantised_block(blocks[layer], config, shapes[layer])
    for number, at in enumerate(renamed):
        moves[number] = subblock(blocks[at.layer], at.half)
    return replace(change, blocks=blocks, shapes=shapes, subblocks=moves)


def _from(start: Place, names: Sequence[str]) -> dict[Place, str]:
    """Return where names stand that begin at a place."""
    return {start + number: name for number, name in enumerate(names)}


def _shape(block: BlockConfig, layer: int, renamed: Mapping[Place, str]) -> BlockConfig:
    """Return the shape of a layer's block where some subblocks are called otherwise."""
    halves = zip(HALVES, names_of(block), strict=True)
    return BlockConfig.from_names(*(renamed.get(Place(layer, half), own) for half, own in halves))
