"""What a run is doing: read from its folders alone, so it works while the run goes on."""

import time
from pathlib import Path
from typing import Any

from fretsaw.pipeline.walk import RUN_FILE, RUN_REMEDY
from fretsaw.stage import artifact, own_file
from fretsaw.stage.holder import is_held
from fretsaw.stage.progress import format_seconds

STATUS_SHAPE = {
    "phase": str,
    "step": int,
    "total": int,
    "unit": str,
    "elapsed_s": own_file.NUMBER,
    "eta_s": own_file.NUMBER,
    "metrics": dict,
    "updated": own_file.NUMBER,
}


def render_status(out: Path) -> str:
    """Return a line for every stage: done, running with its ETA, failed with why, or waiting."""
    path = out / RUN_FILE
    if path.is_file():
        names = own_file.read_json(path, {"stages": [str]}, remedy=RUN_REMEDY)["stages"]
        stages = {name: out / name for name in names}
    elif (out / artifact.MANIFEST).is_file() or artifact.partial_folder(out).is_dir():
        stages = {out.name: out}
    else:
        raise ValueError(f"{out}: no run here; give the folder that was named by --out")
    width = max(map(len, stages))
    lines, seconds = [], 0.0
    for name, folder in stages.items():
        try:
            text, took = _stage_line(folder)
        except ValueError as error:  # the other stages have their lines all the same
            text, took = f"damaged  {error}", 0.0
        seconds += took
        lines.append(f"{name:<{width}}  {text}")
    return "\n".join([*lines, f"{'total':<{width}}  {format_seconds(seconds)} so far"])


def _stage_line(folder: Path) -> tuple[str, float]:
    partial = artifact.partial_folder(folder)
    if partial.is_dir():
        status = _read(partial / "status.json")
        text, took = "starting", 0.0
        if status is not None:
            took = status["elapsed_s"]
            state = "running" if is_held(folder) else "stopped"
            metrics = "  ".join(f"{k} {v:.4g}" for k, v in status["metrics"].items())
            age = time.time() - status["updated"]
            text = (
                f"{state}  {status['phase']} {status['step']}/{status['total']} {status['unit']}s  "
                f"eta {format_seconds(status['eta_s'])}  {metrics}".rstrip()
            )
            text += f"  (last seen {format_seconds(age)} ago)" if state == "stopped" else ""
        error = partial / "error.txt"
        if error.is_file():
            tail = error.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            text = "failed\n" + "\n".join(f"    {line}" for line in tail)
        return text, took
    if (folder / artifact.MANIFEST).is_file():
        manifest = artifact.read_manifest(folder)
        took = manifest["run"]["wall_s"]
        metrics = manifest["metrics"]
        shown = [f"{k} {v:.4g}" for k, v in metrics.items() if isinstance(v, int | float)][:4]
        return f"done     {format_seconds(took):>12}  {'  '.join(shown)}".rstrip(), took
    return "waiting", 0.0


def _read(path: Path) -> dict[str, Any] | None:
    """Return the latest status; a damaged one is none, for the next step writes it again."""
    try:
        return own_file.read_json(path, STATUS_SHAPE) if path.is_file() else None
    except own_file.Damaged:
        return None
