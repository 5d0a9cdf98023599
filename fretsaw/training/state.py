"""The one verb by which every training loop saves and resumes.

A state is a folder with all that the next step depends on: weights, optimizers, step and the loop's
own scalars. Every process writes its own part (torch.distributed.checkpoint), and any number of
processes can read it. Batches are functions of (seed, step), so nothing else is needed for a
resumed run in one process to be bitwise the run that was never stopped.
"""

import errno
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from fretsaw.stage import own_file
from fretsaw.stage.file_errors import behind
from fretsaw.stage.peers import ALONE, Peers
from fretsaw.stage.progress import say
from fretsaw.stage.whole import settle_name, take_name, write_json

REST = "rest.pt"  # what is no tensor
SUMS = "sums.json"  # size and CRC-32 of every other file, and the folders that must stand beside it
SIZES = "sizes"  # key of what is no tensor in folders of 0.1.0 before checksums, which have no SUMS
BEST = "best"  # the folder of the best weights, then
CHUNK = 1 << 22


# --- tensors in a folder --------------------------------------------------------------------------


def save_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    peers: Peers = ALONE,
    *,
    needs: Sequence[str] = (),
    **rest: Any,
) -> None:
    """Write tensors, split ones in parts, so that the folder is there whole or not at all.

    `needs` names the folders beside it without which it is of no use.
    """
    beside = folder.with_name(f".{folder.name}.tmp")

    def begin() -> None:
        settle_name(folder)
        shutil.rmtree(beside, ignore_errors=True)

    def name_it(sums: dict[str, list[int]]) -> None:
        write_json(beside / SUMS, {"files": sums, "needs": list(needs)}, is_synced=True)
        take_name(beside, folder)

    peers.on_first(begin)
    try:
        with _torch_errors(str(beside)):
            dcp.save(
                dict(tensors),
                storage_writer=dcp.FileSystemWriter(beside),
                no_dist=peers.size == 1,
            )
        peers.on_first(lambda: _write_rest(beside / REST, rest))
        sums = _checksums(beside, peers)
        peers.on_first(lambda: name_it(sums))
    except (OSError, RuntimeError):  # of a full disk: what was written of it is in the way
        shutil.rmtree(beside, ignore_errors=True)
        raise


def load_tensors(folder: Path, tensors: Mapping[str, Tensor], peers: Peers = ALONE) -> None:
    """Read saved tensors into these, whatever processes they were split over when saved.

    Raises `ValueError` where the folder is not whole.
    """
    if fault := find_fault(folder, peers):
        raise ValueError(f"{fault}; remove {folder.parent} to start this stage again")
    _load(folder, tensors, peers)


def _load(folder: Path, tensors: Mapping[str, Tensor], peers: Peers) -> None:
    remedy = f"it is another version's or another model's; remove {folder.parent} to start again"
    with _torch_errors(str(folder), remedy):
        dcp.load(
            dict(tensors),
            storage_reader=dcp.FileSystemReader(folder),
            no_dist=peers.size == 1,
        )


def find_fault(folder: Path, peers: Peers = ALONE) -> str | None:
    """Say what is wrong with a saved folder or one that it needs; None where all is whole.

    Of a folder that an earlier version saved, without checksums, only the sizes are known.
    """

    def read() -> dict[str, Any] | str | None:
        settle_name(folder)
        sizes = _sizes_without_sums(folder)
        if sizes is not None:
            return _other_size(folder, sizes)
        try:
            told = own_file.read_json(folder / SUMS, {"files": dict, "needs": [str]})
        except own_file.Damaged as damaged:
            return str(damaged).rpartition(";")[0]
        plain = [name for name in told["needs"] if name == Path(name).name]
        return told if plain == told["needs"] else f"{folder / SUMS}: damaged, it names no folders"

    told = peers.on_first(read)
    if told is None or isinstance(told, str):
        return told
    found = _checksums(folder, peers)
    for name, sums in told["files"].items():
        if found.get(name) != sums:
            what = "differs from what was saved" if name in found else "is gone"
            return f"{folder / name}: damaged, it {what}"
    faults = (find_fault(folder.with_name(name), peers) for name in told["needs"])
    return next((fault for fault in faults if fault), None)


def _sizes_without_sums(folder: Path) -> dict[str, int] | None:
    """Return the sizes that an earlier version noted; None where it has checksums, or neither."""
    if (folder / SUMS).exists() or not (folder / REST).is_file():
        return None
    try:
        return _read_rest(folder).get(SIZES)
    except Exception:  # torch raises anything where bytes are damaged
        return None


def _other_size(folder: Path, sizes: Mapping[str, int]) -> str | None:
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{path}: damaged, it {'has another size' if path.is_file() else 'is gone'}"
    say(
        f"{folder}: saved by an earlier version, so it has no checksums; only its sizes are checked"
    )
    return None


def _write_rest(path: Path, rest: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(rest, file)
        file.flush()
        os.fsync(file.fileno())


def _read_rest(folder: Path) -> dict[str, Any]:
    return torch.load(folder / REST, map_location="cpu", weights_only=True)


def _checksums(folder: Path, peers: Peers) -> dict[str, list[int]]:
    """Return size and CRC-32 of every file; the processes share the reading."""
    names = peers.on_first(lambda: sorted(file.name for file in folder.iterdir()))
    own = {n: _checksum(folder / n) for n in names[peers.rank :: peers.size] if n != SUMS}
    return {name: sums for part in peers.gather(own) for name, sums in part.items()}


def _checksum(path: Path) -> list[int]:
    """Return size and CRC-32; of what can't be read, those of nothing that is ever saved."""
    size = total = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                size, total = size + len(chunk), zlib.crc32(chunk, total)
    except OSError:
        return [-1, 0]
    return [size, total]


@contextmanager
def _torch_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Raise torch's checkpoint error, a BaseException, as the OSError that is behind it.

    Where none is, what was saved does not fit: a ValueError with the remedy, where there is one.
    """
    try:
        with warnings.catch_warnings():  # that without a group it works from a single process
            warnings.simplefilter("ignore", UserWarning)
            yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        refused = next(
            (one for one in behind(cause) if isinstance(one, OSError) and one.errno), None
        )
        first_line = str(cause).strip().partition("\n")[0]
        if refused is None and remedy:
            raise ValueError(f"{what} ({first_line}); {remedy}") from cause
        number = (refused and refused.errno) or errno.EIO
        raise OSError(number, os.strerror(number), what) from cause


# --- the state of a loop --------------------------------------------------------------------------


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
        self.best: str | None = None  # the folder beside the states that holds the best weights

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
            needs=[self.best] if self.best else [],
            step=self.step,
            best=self.best,
            scalars=self.scalars,
            recent=self.recent,
            optimizers=outlines,
        )
        self.peers.on_first(self._drop_old)

    def save_best(self) -> None:
        """Keep the weights of now as the best, beside those that saved states go back to."""
        self.best = f"best-{self.step:08d}"
        save_tensors(self.folder / self.best, self.model.state_dict(), self.peers)
        self.peers.on_first(self._drop_old)

    def load_best(self) -> None:
        """Give the model the best weights."""
        assert self.best is not None, "no weights were kept"
        load_tensors(self.folder / self.best, self.model.state_dict(), self.peers)

    def resume(self) -> bool:
        """Load the newest state that is whole; return whether there was one.

        Raises `ValueError` where there are states and none is whole.
        """
        fault = None
        for folder in reversed(self.peers.on_first(self._folders)):
            found = find_fault(folder, self.peers) or self._try_load(folder)
            if not found:
                self.peers.on_first(lambda: self._drop_after(self.step))
                return True
            say(f"{found}; going back to the state before {folder.name}")
            fault = fault or found
        if fault:
            raise ValueError(
                f"{fault}, and no saved state is whole; remove {self.folder} to start again"
            )
        return False

    def _try_load(self, folder: Path) -> str | None:
        """Load a state; return what is wrong with one that no checksum vouched for."""
        try:
            self._load(folder)
        except (OSError, ValueError) as error:
            if (folder / SUMS).exists():
                raise
            return f"{folder}: damaged, {error}"
        return None

    def _load(self, folder: Path) -> None:
        rest = self.peers.on_first(lambda: _read_rest(folder))
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        packed = []
        for i, (optimizer, outline) in enumerate(
            zip(self.optimizers, rest["optimizers"], strict=True)
        ):
            packed.append(_with_room(optimizer, outline))
            tensors |= _entries(i, packed[-1])
        _load(folder, tensors, self.peers)
        for optimizer, saved in zip(self.optimizers, packed, strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.scalars = rest["step"], rest["scalars"]
        of_earlier = BEST if (self.folder / BEST).is_dir() else None
        self.recent, self.best = rest["recent"], rest.get("best", of_earlier)

    def _folders(self) -> list[Path]:
        for old in self.folder.glob(".step-*.old"):  # killed between two names
            settle_name(self.folder / old.name.removeprefix(".").removesuffix(".old"))
        return sorted(self.folder.glob("step-*"))

    def _drop_after(self, step: int) -> None:
        """Drop damaged states, which are saved again."""
        for folder in self._folders():
            if folder.name > f"step-{step:08d}":
                shutil.rmtree(folder)

    def _drop_old(self) -> None:
        """Drop old states, best weights that no state needs, and what a kill left half written."""
        folders = self._folders()
        for folder in folders[: -self.keep]:
            shutil.rmtree(folder)
        needed = {self.best}
        for folder in folders[-self.keep :]:
            try:
                needed.update(own_file.read_json(folder / SUMS, {"needs": [str]})["needs"])
            except own_file.Damaged:  # nobody goes back to it, or it is an earlier version's
                continue
        for folder in self.folder.glob("best-*"):
            if folder.name not in needed:
                shutil.rmtree(folder)
        for half in self.folder.glob(".*.tmp"):
            shutil.rmtree(half)


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
