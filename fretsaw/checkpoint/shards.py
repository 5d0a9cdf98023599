"""The weights of a checkpoint folder: `model.safetensors`, or shards with an index, in and out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fretsaw.checkpoint.headers import INDEX, SINGLE, StoredTensor
from fretsaw.stage.whole import write_json

_READABLE = ("F32", "F16", "BF16")
_CODES = {torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8"}


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
                yield name, opened.get_tensor(entry.key)


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{file}: not a whole safetensors file ({error}); download it again"
        ) from error


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write one safetensors file, for those to read whom the umask lets.

    The library writes to a file of its own beside it, which only its owner may read.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(mode)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor of which every process may hold a part."""
    tensor = tensor.detach()
    if type(tensor) is Tensor:
        return tensor
    from torch.distributed.tensor import DTensor  # a second's work, where there is one alone

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    as_they_are: frozenset[str] = frozenset(),
    shapes: Mapping[str, Sequence[int]] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write one file, or shards with an index where one would exceed `max_shard_bytes`.

    Tensors are cast, but for those named `as_they_are`, shard by shard, so no more than one shard
    is held twice. Those that are split over processes are gathered one at a time, in order; the
    others must take part. With `shapes` each tensor is looked up once, when its shard is written.
    """
    shards: list[list[str]] = [[]]
    shard_bytes = total_bytes = 0
    for name in tensors:
        stored = tensors[name].dtype if name in as_they_are else dtype
        num_bytes = math.prod(shapes[name] if shapes else tensors[name].shape) * stored.itemsize
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
            name: whole(tensors[name])
            .to("cpu", None if name in as_they_are else dtype)
            .contiguous()
            for name in names
        }
        save_tensors(cast, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        write_json(
            folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        )
