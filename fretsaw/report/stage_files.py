"""The JSON that stages left in their folders."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Return what a file holds. Raises `ValueError` where it is not there."""
    if not path.is_file():
        raise ValueError(f"{path}: not there; the report reads it, so make its stage again")
    return json.loads(path.read_text())


def read_json_if_there(path: Path) -> Any:
    """Return what a file holds; an empty object where it is not there."""
    return read_json(path) if path.is_file() else {}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that a stage logged, in order; none where it logged nothing."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
