"""Spikes: what a jump of the loss is, and the weights that can be gone back to.

A snapshot holds weights alone: the optimizer starts afresh after a rollback, and batches are never
taken back, so nothing else is needed.
"""

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from fretsaw.stage.peers import ALONE, Peers
from fretsaw.training.state import load_tensors, save_tensors

LEAST_DEVIATION = 0.01  # of the median: a very even history is no reason to see spikes


def is_spike(
    recent: Sequence[Sequence[float]], figures: Sequence[float], *, mads: float, window: int
) -> bool:
    """Whether a figure is not finite, or above median + mads x deviation of its recent values.

    The deviation is the median absolute one, and at least 1 % of the median. `recent` has a row a
    step; until half the window has passed only what is not finite counts.
    """
    if not all(map(math.isfinite, figures)):
        return True
    if 2 * len(recent) < window:
        return False
    for value, past in zip(figures, zip(*recent, strict=True), strict=True):
        median = statistics.median(past)
        deviation = statistics.median(abs(one - median) for one in past)
        if value > median + mads * max(deviation, LEAST_DEVIATION * abs(median)):
            return True
    return False


class Snapshots:
    """The last sets of weights of a run, by how many steps were done."""

    def __init__(self, folder: Path, peers: Peers = ALONE):
        self.folder, self.peers = folder, peers

    def save(self, done: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights after `done` steps."""
        save_tensors(self.folder / f"snapshot-{done:08d}", weights, self.peers)

    def trim(self) -> None:
        """Drop all but the last two; call it once the state of the newest is saved."""
        self._drop(self._folders()[:-2])

    def drop_after(self, done: int) -> None:
        """Drop the snapshots of steps that are not done any more."""
        self._drop([folder for folder in self._folders() if _done(folder) > done])

    def restore(self, model: nn.Module, since: int = 0) -> int:
        """Give the model the last weights but one; return after how many steps they were.

        Not the last, for the damage may precede the spike that shows it, but none from before
        `since` steps.
        """
        folder = next(folder for folder in self._folders()[-2:] if _done(folder) >= since)
        load_tensors(folder, model.state_dict(), self.peers)
        return _done(folder)

    def _folders(self) -> list[Path]:
        return self.peers.on_first(lambda: sorted(self.folder.glob("snapshot-*")))

    def _drop(self, folders: Sequence[Path]) -> None:
        self.peers.on_first(lambda: [shutil.rmtree(folder) for folder in folders])


def _done(folder: Path) -> int:
    return int(folder.name.removeprefix("snapshot-"))
