"""What several tests call."""

from pathlib import Path

from fretsaw.progress import Progress
from fretsaw.stage import StageRun


def stage_run(folder: Path, *, seed: int = 0) -> StageRun:
    """Return what a stage is given when a test calls its function directly."""
    folder.mkdir(parents=True, exist_ok=True)
    return StageRun(folder, seed, "cpu", "fp32", Progress("test", folder))
