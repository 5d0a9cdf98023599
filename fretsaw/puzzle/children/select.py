"""The select stage: of several children healed briefly, the one to heal at length.

Rankings flip after distillation, so a few diverse solutions are assembled and healed briefly, and
the best healed is chosen. What comes out is the winner as assembled: its long healing starts there,
not from its short one. No torch.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fretsaw.puzzle.settings import SelectSettings
from fretsaw.stage.artifact import artifact_hash, read_manifest
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.stage.whole import write_json

CHOSEN = "chosen.json"


def select(settings: SelectSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the winner's assembled checkpoint, and `chosen.json` with every candidate's figure.

    Raises `ValueError` where a healed child is not that of its assembled one, or lacks the figure.
    """
    healed, assembled = several(inputs, "child"), several(inputs, "assembled")
    if len(healed) != len(assembled):
        raise ValueError(
            f"select: {len(healed)} healed children and {len(assembled)} assembled ones; give each "
            "candidate in both, in the same order"
        )
    candidates = [
        _candidate(child, start, settings.figure)
        for child, start in zip(healed, assembled, strict=True)
    ]
    winner = min(range(len(candidates)), key=lambda i: candidates[i]["figure"])
    for name in read_manifest(assembled[winner])["outputs"]:
        _link(assembled[winner] / name, run.folder / name)
    write_json(
        run.folder / CHOSEN,
        {"candidate": winner, "figure": settings.figure, "candidates": candidates},
    )
    figures = ", ".join(f"{entry['figure']:.4f}" for entry in candidates)
    say(f"select: candidate {winner} of {settings.figure} {figures}")
    return {
        "candidate": winner,
        "solution": candidates[winner]["solution"],
        settings.figure: candidates[winner]["figure"],
    }


def several(inputs: Mapping[str, Path], name: str) -> list[Path]:
    """Return the inputs `name`, `name1`, `name2`, ... in order."""
    found = [inputs[name]]
    while (more := f"{name}{len(found)}") in inputs:
        found.append(inputs[more])
    return found


def _candidate(healed: Path, assembled: Path, figure: str) -> dict[str, Any]:
    before, after = read_manifest(assembled), read_manifest(healed)
    start = after["inputs"].get("child")
    if start is None or start["hash"] != artifact_hash(before):
        raise ValueError(
            f"{healed}: not healed from {assembled}; give the children in the order of the "
            "assembled ones"
        )
    if figure not in after["metrics"]:
        raise ValueError(
            f"{healed}: its manifest has no figure {figure!r}; it has "
            f"{', '.join(after['metrics']) or 'none'}"
        )
    return {
        "solution": before["settings"]["solution"],
        "score": before["metrics"]["score"],
        "figure": after["metrics"][figure],
        "metrics": after["metrics"],
    }


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where the disk can't link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if source.stat().st_dev == target.parent.stat().st_dev:
        os.link(source, target)
    else:
        shutil.copy2(source, target)
