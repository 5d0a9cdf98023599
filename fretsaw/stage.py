"""What every stage is given while it runs, and the two ways it can end early."""

import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fretsaw import artifact
from fretsaw.progress import Progress, format_seconds, say
from fretsaw.workers import HERE, Workers


class Interrupted(Exception):
    """The scheduler asked us to stop; what was done is saved and the same command goes on."""


@dataclass
class StageRun:
    """One execution of a stage: where to write, what to compute on, whom to tell."""

    folder: Path  # becomes the output when complete
    seed: int
    device: str
    dtype: str  # of matrix work: "fp32" or "bf16"; weights that are trained stay fp32
    progress: Progress
    workers: Workers = HERE
    stop_requested: bool = False

    @property
    def resume_folder(self) -> Path:
        """Where state for a continuing run is kept; it is gone once the artifact is complete."""
        folder = self.folder / artifact.RESUME
        folder.mkdir(exist_ok=True)
        return folder

    def step(self, step: int, metrics: dict[str, float] | None = None, *, row: bool = True) -> None:
        """Report a finished step; the place where a stop that was asked for takes effect."""
        self.progress.step(step, metrics, row=row)
        self.check()

    def check(self) -> None:
        """Let a stop that was asked for take effect, between steps too."""
        if self.stop_requested:
            raise Interrupted


StageFunction = Callable[[Any, Mapping[str, Path], StageRun], dict[str, Any]]


def execute(
    function: StageFunction,
    request: artifact.Request,
    settings: Any,
    out: Path,
    *,
    device: str,
    dtype: str,
    force: bool = False,
    workers: Workers = HERE,
) -> dict[str, Any]:
    """Run a stage unless its result is there; return the manifest either way."""
    reason = "made again" if force else artifact.staleness(out, request)
    if reason is None:
        say(f"{request.stage}: done already in {out}")
        return artifact.read_manifest(out)
    folder = artifact.open_partial(out, request, force=force)
    artifact.write_json(folder / artifact.PRECISION, [device, dtype])
    progress = Progress(request.stage, folder)
    run = StageRun(folder, request.seed, device, dtype, progress, workers)

    def request_stop(signal_number: int, frame: object) -> None:
        if run.stop_requested and signal_number == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C twice: at once, without saving
        run.stop_requested = True

    stops = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(stop, request_stop) for stop in stops]
    started = time.monotonic()
    error_path = folder / "error.txt"
    error_path.unlink(missing_ok=True)
    try:
        metrics = function(settings, request.inputs, run)
    except Exception as error:
        if not isinstance(error, Interrupted):
            error_path.write_text("".join(traceback.format_exception(error)))
        raise
    finally:
        progress.close()
        for stop, handler in zip(stops, previous, strict=True):
            signal.signal(stop, handler)
    seconds = time.monotonic() - started
    manifest = artifact.complete(
        out,
        request,
        metrics,
        seconds=seconds,
        extra={"device": device, "dtype": dtype, **asdict(workers)},
    )
    say(f"{request.stage}: finished in {format_seconds(seconds)} -> {out}")
    return manifest
