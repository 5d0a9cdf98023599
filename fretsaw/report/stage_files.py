"""The JSON that stages left in their folders."""

from pathlib import Path
from typing import Any

from fretsaw.stage import artifact, own_file


def read_json(path: Path, shape: Any = (dict, list)) -> Any:
    """Return what a file holds. Raises `ValueError` where it is not there, or damaged."""
    return artifact.read_output(path.parent, path.name, shape)


def read_json_if_there(path: Path, shape: Any = (dict, list)) -> Any:
    """Return what a file holds; an empty object where it is not there."""
    return read_json(path, shape) if path.is_file() else {}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that a stage logged, in order; none where it logged nothing."""
    return own_file.read_jsonl(folder / "metrics.jsonl", {"step": int})
