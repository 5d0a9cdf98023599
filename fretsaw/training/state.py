"""The one verb by which every training loop saves and resumes.

A state is a folder with all that the next step depends on: weights, optimizers, step and the loop's
own scalars. Every process writes its own part (torch.distributed.checkpoint), and any number of
processes can read it. Batches are functions of (seed, step), so nothing else is needed for a
resumed run in one process to be bitwise the run that was never stopped.
"""

import os
import pickle
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from fretsaw.model.config import ModelConfig
from fretsaw.model.size import num_params
from fretsaw.stage.peers import ALONE, Peers
from fretsaw.stage.progress import say

REST = "rest.pt"  # what is no tensor, and how large the other files are
BYTES_PER_PARAMETER = 12  # weights and two moments in float32


# --- tensors in a folder --------------------------------------------------------------------------


def save_tensors(
    folder: Path, tensors: Mapping[str, Tensor], peers: Peers = ALONE, **rest: Any
) -> None:
    """Write tensors, split ones in parts, so that the folder is there whole or not at all."""
    beside, old = _beside(folder, "tmp"), _beside(folder, "old")
    peers.on_first(lambda: shutil.rmtree(beside, ignore_errors=True))
    with warnings.catch_warnings():  # that without a group it saves from a single process
        warnings.simplefilter("ignore", UserWarning)
        dcp.save(
            dict(tensors),
            storage_writer=dcp.FileSystemWriter(beside),
            no_dist=peers.size == 1,
        )

    def finish() -> None:
        sizes = {file.name: file.stat().st_size for file in beside.iterdir()}
        with (beside / REST).open("wb") as file:
            torch.save({**rest, "sizes": sizes}, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    peers.on_first(finish)


def load_tensors(folder: Path, tensors: Mapping[str, Tensor], peers: Peers = ALONE) -> None:
    """Read saved tensors into these, whatever processes they were split over when saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.load(
            dict(tensors),
            storage_reader=dcp.FileSystemReader(folder),
            no_dist=peers.size == 1,
        )


def read_rest(folder: Path) -> dict[str, Any] | None:
    """Return what is no tensor, or None where the folder is damaged."""
    old = _beside(folder, "old")
    if old.is_dir() and not folder.exists():  # killed between two names
        old.rename(folder)
    try:
        rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    files = [(folder / name, size) for name, size in rest["sizes"].items()]
    is_whole = all(file.is_file() and file.stat().st_size == size for file, size in files)
    return rest if is_whole else None


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


# --- the state of a loop --------------------------------------------------------------------------


def saved_bytes(config: ModelConfig) -> int:
    """Return what the saved states of a network take on disk, if all of it is trained."""
    return 2 * BYTES_PER_PARAMETER * num_params(config)


class TrainingState:
    """Where a loop is: `step` steps are done, `scalars` is what else the loop remembers."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        *,
        peers: Peers = ALONE,
        keep: int = 2,
    ):
        self.folder, self.model, self.optimizers = folder, model, optimizers
        self.peers, self.keep = peers, keep
        self.step = 0
        self.scalars: dict[str, float] = {}
        self.recent: list[list[float]] = []  # figures of the last steps, where a loop needs them

    def save(self) -> None:
        """Write the state of this step and drop all but the last `keep`."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        outlines = []
        for i, optimizer in enumerate(self.optimizers):
            packed = optimizer.state_dict()
            tensors |= _entries(i, packed)
            _check_split(optimizer, packed)
            outlines.append(_outline(packed))
        save_tensors(
            self.folder / f"step-{self.step:08d}",
            tensors,
            self.peers,
            step=self.step,
            scalars=self.scalars,
            recent=self.recent,
            optimizers=outlines,
        )
        self.peers.on_first(self._drop_old)

    def resume(self) -> bool:
        """Load the newest state that can be read; return whether there was one."""
        is_damaged = False
        for folder in reversed(self.peers.on_first(self._folders)):
            rest = self.peers.on_first(lambda folder=folder: read_rest(folder))
            if rest is None:
                say(f"{folder.name} is damaged; going back to the state before it")
                continue
            tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
            packed = []
            for i, (optimizer, outline) in enumerate(
                zip(self.optimizers, rest["optimizers"], strict=True)
            ):
                packed.append(_with_room(optimizer, outline))
                tensors |= _entries(i, packed[-1])
            try:
                load_tensors(folder, tensors, self.peers)
            except CheckpointException as error:
                say(f"{folder.name} cannot be read ({error}); going back to the state before it")
                is_damaged = True
                continue
            for optimizer, saved in zip(self.optimizers, packed, strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.scalars = rest["step"], rest["scalars"]
            self.recent = rest["recent"]
            return True
        if is_damaged:  # what was read of it overwrote the weights
            raise ValueError(f"{self.folder}: no saved state can be read; remove it to start again")
        return False

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _drop_old(self) -> None:
        for folder in self._folders()[: -self.keep]:
            shutil.rmtree(folder)


# --- an optimizer's state dict, whose tensors are stored apart from the rest of it ----------------


def _entries(i: int, packed: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the i-th optimizer by names that tell parameter and entry."""
    return {
        f"optimizer{i}.{index}.{key}": value
        for index, entries in packed["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def _outline(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict with tensors that have shape and dtype, but no values."""

    def outlined(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    state = {
        index: {key: outlined(value) for key, value in entries.items()}
        for index, entries in packed["state"].items()
    }
    return {"state": state, "param_groups": packed["param_groups"]}


def _with_room(optimizer: torch.optim.Optimizer, outline: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict with tensors to read into, split as their parameters are."""
    parameters = _parameters(optimizer)
    is_offloaded = getattr(optimizer, "offload", False)

    def room(parameter: Tensor, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if isinstance(parameter, DTensor) and value.shape == parameter.shape:
            return torch.empty_like(parameter, dtype=value.dtype)
        return torch.empty_like(value, device="cpu" if is_offloaded else parameter.device)

    state = {
        index: {key: room(parameters[index], value) for key, value in entries.items()}
        for index, entries in outline["state"].items()
    }
    return {"state": state, "param_groups": outline["param_groups"]}


def _check_split(optimizer: torch.optim.Optimizer, packed: Mapping[str, Any]) -> None:
    parameters = _parameters(optimizer)
    for index, entries in packed["state"].items():
        for key, value in entries.items():
            assert (
                not isinstance(parameters[index], DTensor)
                or not isinstance(value, Tensor)
                or value.ndim == 0
                or isinstance(value, DTensor)
            ), f"{key}: every process would write its own part of it as the whole"


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
