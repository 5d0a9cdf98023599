"""The one verb by which every training loop saves and resumes.

A state file holds all that the next step depends on: weights, optimizer, step and the loop's own
scalars. Batches are functions of (seed, step), so nothing else is needed for a resumed run to be
bitwise the run that was never stopped.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fretsaw.progress import say


def save_tensors(path: Path, value: Any) -> None:
    """Write so that the file is there whole or not at all."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class TrainingState:
    """Where a loop is: `step` steps are done, `scalars` is what else the loop remembers."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        *,
        keep: int = 2,
    ):
        self.folder, self.model, self.optimizers, self.keep = folder, model, optimizers, keep
        self.step = 0
        self.scalars: dict[str, float] = {}
        self.recent: list[list[float]] = []  # figures of the last steps, where a loop needs them

    def save(self) -> None:
        """Write the state of this step and drop all but the last `keep`."""
        path = self.folder / f"step-{self.step:08d}.pt"
        save_tensors(
            path,
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
                "scalars": self.scalars,
                "recent": self.recent,
            },
        )
        for old in self._files()[: -self.keep]:
            old.unlink()

    def resume(self) -> bool:
        """Load the newest state that can be read; return whether there was one."""
        for path in reversed(self._files()):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
                say(f"{path.name} cannot be read ({error}); going back to the state before it")
                continue
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.scalars = state["step"], state["scalars"]
            self.recent = state["recent"]
            return True
        return False

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))
