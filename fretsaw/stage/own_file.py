"""The one reader of the JSON that this package wrote: whole, of the right shape, unchanged.

What a disk or a kill made of such a file is told in one sentence, with its path and the remedy. No
file is trusted for having our name on it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

AGAIN = "make its stage again"
CHANGED = "{path}: changed since it was made (its sha256 is another); {remedy}"
NUMBER = (int, float)


class Damaged(ValueError):
    """A file of ours does not hold what was written to it."""


def read_json(path: Path, shape: Any = dict, *, remedy: str = AGAIN, digest: str = "") -> Any:
    """Return what a JSON file holds. Raises `Damaged` where it is not of the shape.

    A shape is a type, a tuple of types, an object of the keys that must be there, or a list of the
    one shape of all items. With `digest` the file's sha256 must be that.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{path}: not there; {remedy}") from error
    except IsADirectoryError as error:
        raise Damaged(f"{path}: a folder, not a file; {remedy}") from error
    value = parse(content, f"{path}", shape, remedy=remedy)
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise Damaged(CHANGED.format(path=path, remedy=remedy))
    return value


def parse(content: bytes | str, where: str, shape: Any = dict, *, remedy: str = AGAIN) -> Any:
    """Return what JSON text holds; errors say `where` it stands."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        what = "empty" if not content.strip() else f"damaged, not JSON ({_short(error)})"
        raise Damaged(f"{where}: {what}; {remedy}") from error
    if fault := mismatch(value, shape):
        raise Damaged(f"{where}: damaged, {fault}; {remedy}")
    return value


def read_jsonl(path: Path, shape: Any = dict) -> list[Any]:
    """Return the rows of a JSONL file that can be read, in order; none where there is no file.

    A row that a kill cut short, or a disk damaged, is left out: whoever wrote it writes it again.
    """
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(parse(line, str(path), shape))
        except Damaged:
            continue
    return rows


def append_row(path: Path, row: Any) -> None:
    """Add a row to a JSONL file, on a line of its own also where a kill cut the last one short."""
    with path.open("a+b") as file:
        is_torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            is_torn = file.read() != b"\n"
        file.write(b"\n" * is_torn + json.dumps(row).encode() + b"\n")


def mismatch(value: Any, shape: Any, name: str = "it") -> str | None:
    """Say how a value differs from a shape; None where it does not."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{name} is {_kind(value)}, not an object"
        absent = [key for key in shape if key not in value]
        if absent:
            return f"{name} has no key {absent[0]!r}"
        faults = (mismatch(value[key], inner, repr(key)) for key, inner in shape.items())
        return next((fault for fault in faults if fault), None)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name} is {_kind(value)}, not a list"
        faults = (mismatch(item, shape[0], f"item {i} of {name}") for i, item in enumerate(value))
        return next((fault for fault in faults if fault), None)
    types = shape if isinstance(shape, tuple) else (shape,)
    is_bool_for_number = isinstance(value, bool) and bool not in types and object not in types
    if is_bool_for_number or not isinstance(value, types):
        return f"{name} is {_kind(value)}, not {' or '.join(_KINDS[one] for one in types)}"
    return None


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return _KINDS[type(value)]


def _short(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
