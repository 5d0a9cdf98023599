"""Files and folders that are there whole or not at all, whatever moment a kill comes at."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fretsaw.stage.place import refuse_existing


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    with replace_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, is_synced: bool = False) -> None:
    """Write indented JSON so that it is there whole or not at all; synced, past power cuts."""
    with replace_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        if is_synced:
            os.fsync(file.fileno())


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the name once the block ends.

    An error leaves neither.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a fresh folder that takes the name `out` when the block ends without an error."""
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    refuse_existing(out)
    beside.mkdir(parents=True)
    try:
        yield beside
        take_name(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def take_name(beside: Path, out: Path) -> None:
    """Give a whole folder its name, in the place of what has it now.

    A kill at any moment leaves the new folder or the old one, once `settle_name` was called.
    """
    settle_name(out)
    old = old_name(out)
    if out.exists():
        out.rename(old)
    beside.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def settle_name(out: Path) -> None:
    """End what a kill left of `take_name`: the folder keeps its old content, or loses it."""
    old = old_name(out)
    if not old.is_dir():
        return
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(out)


def old_name(out: Path) -> Path:
    """Return where the old content stands while a folder is replaced."""
    return out.with_name(f".{out.name}.old")
