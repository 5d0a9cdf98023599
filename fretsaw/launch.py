"""A stage is a process: this starts one locally, and is what that process runs.

The request travels as a JSON file, so that any launcher that can run a command can run a stage.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fretsaw import artifact
from fretsaw.recipe import STAGES
from fretsaw.settings import build
from fretsaw.stage import execute
from fretsaw.workers import Workers


def start(request: dict[str, Any], path: Path) -> int:
    """Write the request and run it in a process of its own; return its exit code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_json(path, request)
    process = subprocess.Popen([sys.executable, "-m", "fretsaw", "stage", str(path)])
    try:
        return process.wait()
    except BaseException:  # Ctrl-C or SIGTERM here: let the stage save, then go
        process.terminate()
        process.wait()
        raise


def run_request(path: Path) -> None:
    """Execute the stage that a request file describes."""
    request = json.loads(path.read_text())
    kind = STAGES[request["stage"]]
    settings = build(kind.settings, request["settings"])
    inputs = {name: Path(value) for name, value in request["inputs"].items()}
    execute(
        kind.load(),
        artifact.Request.of(request["stage"], settings, inputs, request["seed"]),
        settings,
        Path(request["out"]),
        device=request["device"],
        dtype=request["dtype"],
        force=request["force"],
        workers=Workers(**request["workers"]),
    )
