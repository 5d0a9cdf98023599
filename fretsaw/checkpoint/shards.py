"""Safetensors files of a checkpoint folder: one `model.safetensors`, or shards with an index."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from fretsaw.stage.artifact import write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_READABLE = ("F32", "F16", "BF16")
_CODES = {torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8"}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored and what its header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name, such as "BF16"


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that make up the checkpoint; all of them must be there."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _indexed_files(folder)
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder}: its weights are pickles ({pickles[0]}), which can run code when opened; "
            "convert them to safetensors first"
        )
    raise ValueError(f"{folder}: no {SINGLE} and no {INDEX}; give the folder of a whole checkpoint")


def _indexed_files(folder: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / INDEX}: not an index of shards ({error!r}); download it again"
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of the {len(names)} shards named in {INDEX} are missing "
            f"({', '.join(missing[:3])}); download them again"
        )
    return [folder / name for name in names]


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Return every stored tensor's place, shape and type, without reading the weights."""
    stored: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        with _open(file) as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                part = opened.get_slice(name)
                stored[name] = StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
    return stored


def read_tensors(
    stored: Mapping[str, StoredTensor], dtypes: Mapping[str, torch.dtype] = MappingProxyType({})
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors file by file, as they are stored; each may be a view of its file.

    Those with 8 bits in `dtypes` must be stored in these, all others in floating point.
    """
    for file in sorted({entry.file for entry in stored.values()}):
        with _open(file) as opened:
            for name, entry in stored.items():
                if entry.file != file:
                    continue
                code = _CODES.get(dtypes.get(name, torch.float32))
                wanted = _READABLE if code is None else (code,)
                if entry.dtype not in wanted:
                    raise ValueError(
                        f"{file}: {name} is stored as {entry.dtype}, which is not one of "
                        f"{', '.join(wanted)}; save the checkpoint in bf16 or fp32 first"
                    )
                yield name, opened.get_tensor(name)


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{file}: not a whole safetensors file ({error}); download it again "
            "(a Git LFS pointer is not the file itself)"
        ) from error


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    as_they_are: frozenset[str] = frozenset(),
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write one file, or shards with an index where one would exceed `max_shard_bytes`.

    Tensors are cast, but for those named `as_they_are`, shard by shard, so no more than one shard
    is held twice. Those that are split over processes are gathered one at a time, in order; the
    others must take part.
    """
    shards: list[list[str]] = [[]]
    shard_bytes = total_bytes = 0
    for name, tensor in tensors.items():
        num_bytes = tensor.numel() * (tensor if name in as_they_are else dtype).itemsize
        if shards[-1] and shard_bytes + num_bytes > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(name)
        shard_bytes += num_bytes
        total_bytes += num_bytes
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        cast = {
            name: _whole(tensors[name])
            .to("cpu", None if name in as_they_are else dtype)
            .contiguous()
            for name in names
        }
        save_file(cast, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        write_json(
            folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        )
