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
from jaxtyping import Float
from torch import Tensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.kinds import Half
from fretsaw.model.place import HALVES, Place
from fretsaw.model.quantised import quantised_block
from fretsaw.model.subblock import names_of
from fretsaw.puzzle.library import repair
from fretsaw.puzzle.library.ranking import read_orders
from fretsaw.puzzle.library.replay import Frontier, Move, Replay, subblock
from fretsaw.puzzle.library.slices import Trained, alternative, sort_parent


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
    """The texts on which changes are repaired: one to fit, a Replay to judge each refit by.

    `fit` stands before a subblock of the parent and walks.
    """

    def __init__(self, fit: Frontier, gate: Replay):
        self.fit, self.gate = fit, gate
        self._ahead: list[Float[Tensor, "rows seq hidden"]] = []

    def wanted(self, number: int) -> Float[Tensor, "rows seq hidden"]:
        """Return the parent's states after its next `number` subblocks."""
        while len(self._ahead) < number:
            latest = self._ahead[-1] if self._ahead else self.fit.states
            move = self.fit.subblocks[self.fit.at.number + len(self._ahead)]
            self._ahead.append(self.fit.after([move], latest))
        return self._ahead[number - 1]

    def walk(self) -> None:
        """Go through the parent's next subblock."""
        self.fit.states, self.fit.at = self.wanted(1), self.fit.at + 1
        self.gate.frontier.walk()
        del self._ahead[0]

    def walk_to(self, at: Place) -> None:
        """Go on to before the parent's subblock `at`."""
        while self.fit.at < at:
            self.walk()


def open_parent(inputs: Mapping[str, Path], device: str) -> Decoder:
    """Return the parent, sorted by its ranking."""
    parent = checkpoint.load(inputs["parent"], device=device)
    sort_parent(parent, read_orders(inputs["ranking"], parent.config.num_hidden_layers))
    return parent


def calibrate(
    parent: Decoder, corpus: Path, tokens: int, seq_len: int, batch_rows: int
) -> Calibration:
    """Return both texts, from the training part of a corpus: `tokens` to fit, an eighth to judge.

    Raises `ValueError` where there are not even two rows.
    """
    windows = torch.from_numpy(loader.first_rows(corpus / "train.npy", seq_len, tokens * 9 // 8))
    if len(windows) < 2:
        raise ValueError(
            f"calibration: {len(windows) * seq_len} tokens of {corpus} are one row of seq_len "
            f"{seq_len}; repair needs two at least, so give more text or shorter rows"
        )
    windows = windows.to(parent.device)
    num_judging = max(1, len(windows) // 9)
    fit = Frontier(parent, windows[:-num_judging, :-1], batch_rows)
    return Calibration(fit, Replay(parent, windows[-num_judging:], batch_rows))


class Trial:
    """A changed model as it grows, subblock by subblock: its states on both texts."""

    def __init__(self, calibration: Calibration):
        self.calibration, self.at = calibration, calibration.fit.at
        self.states = calibration.fit.states
        self.judged = calibration.gate.frontier.states

    def append(
        self,
        block: Block,
        half: Half,
        wanted: Float[Tensor, "rows seq hidden"] | None,
        num_subblocks: int = 1,
    ) -> Refit | None:
        """Go through a half of `block`, refitted in place to the parent's `wanted` states first.

        It stands for `num_subblocks` of the parent's. Returns what the refit did; None without
        `wanted` or without a matrix to refit.
        """
        refit = None if wanted is None else self._refit(block, half, wanted, num_subblocks)
        move = subblock(block, half)
        self.states = self.calibration.fit.after([move], self.states)
        self.judged = self.calibration.gate.frontier.after([move], self.judged)
        self.at += num_subblocks
        return refit

    def _refit(
        self,
        block: Block,
        half: Half,
        wanted: Float[Tensor, "rows seq hidden"],
        num_subblocks: int,
    ) -> Refit | None:
        fit, gate = self.calibration.fit, self.calibration.gate
        matrix = repair.output_matrix(block, half)
        if matrix is None:
            return None

        def kl() -> float:
            after = gate.frontier.after([subblock(block, half)], self.judged)
            return gate.figures(after, self.at + num_subblocks).kl.mean().item()

        before, weight = kl(), matrix.weight.clone()
        pairs = zip(self.states.split(fit.batch_rows), wanted.split(fit.batch_rows), strict=True)
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
        wanted = calibration.wanted(number + 1) if is_refitted else None
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
