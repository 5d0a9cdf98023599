"""What a checkpoint's safetensors files say of their tensors, read without the weights.

Standard library only, so a folder is checked in milliseconds, before any work. The files are one
`model.safetensors`, or shards with an index. An index is somebody else's text: its names are taken
as files of the folder and nothing else.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fretsaw.checkpoint.json_object import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LFS = b"version https://git-lfs"
_MAX_HEADER = 100_000_000  # bytes; what the format allows
_ITEM_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2},
    **{"BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8},
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored and what its header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name, such as "BF16"
    key: str  # its name in the file


def has_weights(folder: Path) -> bool:
    """Whether there is anything that claims to be the folder's weights."""
    return any(os.path.lexists(folder / name) for name in (SINGLE, INDEX))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that make up the checkpoint; all of them must be there."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return sorted(set(_indexed(folder).values()))
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder}: its weights are pickles ({pickles[0]}), which can run code when opened; "
            "convert them to safetensors first"
        )
    raise ValueError(f"{folder}: no {SINGLE} and no {INDEX}; give the folder of a whole checkpoint")


def file_in(folder: Path, name: object, *, suffix: str, told_by: Path) -> Path:
    """Return the file of a folder that another file names.

    Raises ValueError for anything but a plain file name: what a download says must not open what is
    elsewhere. Where the file itself is a link it is followed, as the Hub's cache is made of links.
    """
    is_plain = (
        isinstance(name, str)
        and name.endswith(suffix)
        and name != suffix
        and not any(sign in name for sign in ("/", "\\", "\0"))
    )
    if not is_plain:
        raise ValueError(
            f"{told_by}: names {name!r}, which is no {suffix} file of its own folder; "
            "download it again"
        )
    return folder / str(name)


def _indexed(folder: Path) -> dict[str, Path]:
    """Return the shard of every tensor, as the index says."""
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: not an index of shards (no weight_map); download it again")
    shards = {
        tensor: file_in(folder, name, suffix=".safetensors", told_by=index)
        for tensor, name in weight_map.items()
    }
    files = sorted(set(shards.values()))
    missing = [file.name for file in files if not os.path.isfile(file)]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of the {len(files)} shards named in {INDEX} are missing "
            f"({', '.join(map(_shown, missing[:3]))}); download them again"
        )
    return shards


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Return every stored tensor's place, shape and type, without reading the weights.

    Raises ValueError for a file that is not whole, and where the index says otherwise.
    """
    stored: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, entry in read_header(file).items():
            if name in stored:
                raise ValueError(
                    f"{folder}: {name} is stored twice, in {stored[name].file.name} and "
                    f"{file.name}; download the folder again"
                )
            stored[name] = entry
    if not (folder / SINGLE).is_file():
        for name, file in _indexed(folder).items():
            if name not in stored or stored[name].file != file:
                raise ValueError(
                    f"{folder}: {INDEX} says that {name} is in {file.name}, which does not hold "
                    "it; download both again"
                )
    return stored


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return what one file's header says, checked against the file's size."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(max(8, len(_LFS)))
        if start.startswith(_LFS):
            _refuse(
                file, "a Git LFS pointer, which is not the file itself", "fetch it: git lfs pull"
            )
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
            _refuse(file, f"{size} bytes, too few for its header" if size else "empty")
        opened.seek(8)
        text = opened.read(length)
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        _refuse(file, f"its header is not JSON: {error}")
    if not isinstance(header, dict):
        _refuse(file, "its header is no JSON object")
    header.pop("__metadata__", None)
    stored, ranges = {}, []
    for name, entry in header.items():
        stored[name], between = _entry(file, name, entry)
        ranges.append((*between, name))
    _check_ranges(file, sorted(ranges), size - 8 - length)
    return stored


def _entry(file: Path, name: str, entry: Any) -> tuple[StoredTensor, tuple[int, int]]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(last)]}:
            pass
        case _:
            _refuse(file, f"its header says of {name!r} neither type, shape nor place")
    if not all(type(dim) is int and dim >= 0 for dim in shape):
        _refuse(file, f"{name!r} has the shape {shape}")
    wanted = _ITEM_BYTES.get(dtype, 0) * math.prod(shape)
    if dtype in _ITEM_BYTES and last - first != wanted:
        _refuse(file, f"{name!r} takes {last - first} bytes, and {dtype} {shape} is {wanted}")
    return StoredTensor(file, tuple(shape), dtype, name), (first, last)


def _check_ranges(file: Path, ranges: list[tuple[int, int, str]], size: int) -> None:
    """Raise where the tensors' bytes do not follow one another to the end of the file."""
    at = 0
    for first, last, name in ranges:
        if first != at or last < first:
            _refuse(file, f"{name!r} begins at byte {first} of the data, and {at} comes next")
        at = last
    if at != size:
        _refuse(file, f"its header tells of {at} bytes, and {size} are there")


def _refuse(file: Path, reason: str, remedy: str = "download it again") -> NoReturn:
    raise ValueError(f"{file}: not a whole safetensors file ({reason}); {remedy}")
