"""Spikes: what a jump of the loss is, the weights that can be gone back to, and the way back.

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
from fretsaw.stage.progress import say
from fretsaw.training.optimizer import clear_gradient, forget
from fretsaw.training.schedule import rewarm
from fretsaw.training.settings import SpikeSettings
from fretsaw.training.state import TrainingState, load_tensors, save_tensors

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


class SpikeWatch:
    """What a loop does about spikes: it looks for them, and takes its state back to a snapshot.

    `state.step` counts batches: those that a rollback threw away are lost, the others are done.
    With `max_rollbacks` 0 nothing is a spike and there are no snapshots.
    """

    def __init__(self, settings: SpikeSettings, state: TrainingState):
        self.settings, self.state = settings, state
        self.snapshots = Snapshots(state.folder, state.peers)

    @property
    def num_lost(self) -> int:
        """How many steps rollbacks threw away."""
        return int(self.state.scalars.get("lost", 0))

    @property
    def num_done(self) -> int:
        """How many steps count."""
        return self.state.step - self.num_lost

    @property
    def rewarm_factor(self) -> float:
        """The factor on the rates, which rise again after a fresh optimizer."""
        since = self.state.scalars.get("restarted")
        if since is None:
            return 1.0
        return rewarm(self.num_done - int(since), self.settings.rewarm_steps)

    def begin(self) -> None:
        """Begin a phase: compare with no step before it, and keep the weights it begins with."""
        self.state.recent = []
        if self.settings.max_rollbacks:
            self.take_snapshot()

    @property
    def is_snapshot_due(self) -> bool:
        """Whether the weights of now are to be kept."""
        rule = self.settings
        return rule.max_rollbacks > 0 and self.num_done % rule.snapshot_every == 0

    def take_snapshot(self) -> None:
        """Keep the weights of now."""
        self.snapshots.save(self.num_done, self.state.model.state_dict())

    def sees_spike(self, figures: Sequence[float]) -> bool:
        """Whether a step's loss and gradient norm jump above those of the steps before it."""
        rule = self.settings
        return rule.max_rollbacks > 0 and is_spike(
            self.state.recent, figures, mads=rule.spike_mads, window=rule.spike_window
        )

    def remember(self, figures: list[float]) -> None:
        """Take a step's loss and gradient norm among those that later ones are compared with."""
        self.state.recent = [*self.state.recent, figures][-self.settings.spike_window :]

    def go_back(self, figures: Sequence[float], *, since: int) -> None:
        """Return to earlier weights with a fresh optimizer; the batches since are not seen again.

        No further than `since` steps, where the phase began. Raises `ValueError` once
        `max_rollbacks` of them are used up.
        """
        state, num_before = self.state, int(self.state.scalars.get("rollbacks", 0))
        what = f"step {state.step}: loss {figures[0]:.4g} with a gradient norm of {figures[1]:.4g}"
        if num_before >= self.settings.max_rollbacks:
            raise ValueError(
                f"{what} is a spike after {num_before} rollbacks; lower learning_rate, look at the "
                "text of these steps, or raise max_rollbacks"
            )
        back_to = self.snapshots.restore(state.model, since)
        say(f"{what} is a spike; back to the weights after {back_to} steps, with other batches")
        clear_gradient(state.optimizers)
        forget(state.optimizers)
        state.step += 1
        lost = state.step - back_to
        state.scalars |= {"rollbacks": num_before + 1, "lost": lost, "restarted": back_to}
