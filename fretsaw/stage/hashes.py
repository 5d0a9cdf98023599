"""What things are by their content: sha256 of values and of files."""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from fretsaw.stage.cache import cache_folder
from fretsaw.stage.whole import write_text


def canonical_json(value: Any) -> str:
    """Serialise so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def hash_json(value: Any) -> str:
    """Return the sha256 of a value, whatever order its keys have."""
    return _sha256(canonical_json(value))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's content, streamed once and cached by size and mtime."""
    stat = path.stat()
    folder = cache_folder("hashes")
    if folder is None or stat.st_size <= 1 << 20:  # quicker to read than to look up
        return read_hash(path)
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    cache = folder / hashlib.sha256(os.fsencode(key)).hexdigest()
    with contextlib.suppress(OSError, ValueError):  # a cache that can't be read is none
        known = cache.read_text()
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    digest = read_hash(path)
    with contextlib.suppress(OSError):  # nor is one that can't be written
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_text(cache, digest)
    return digest


def read_hash(path: Path) -> str:
    """Return the sha256 of a file's content, whatever is known of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
