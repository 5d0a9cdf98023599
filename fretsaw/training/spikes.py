"""Spikes: what a jump of the loss is, and the weights that can be gone back to.

A snapshot holds weights alone: the optimizer starts afresh after a rollback, and batches are never
taken back, so nothing else is needed.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fretsaw.training.state import save_tensors

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

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, done: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights after `done` steps."""
        save_tensors(self.folder / f"snapshot-{done:08d}.pt", dict(weights))

    def keep(self, last: int) -> None:
        """Drop all but the last; call it once the state of the newest is saved."""
        for path in self._files()[:-last]:
            path.unlink()

    def drop_after(self, done: int) -> None:
        """Drop the snapshots of steps that are not done any more."""
        for path in self._files():
            if _done(path) > done:
                path.unlink()

    def restore(self, model: nn.Module) -> int:
        """Give the model the oldest weights that are kept; return after how many steps they were.

        Not the newest: the damage may precede the spike that shows it.
        """
        path = self._files()[0]
        device = next(model.parameters()).device
        model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        return _done(path)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("snapshot-*.pt"))


def _done(path: Path) -> int:
    return int(path.stem.removeprefix("snapshot-"))
