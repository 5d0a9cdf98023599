"""What every stage is given while it runs, and the two ways it can end early."""

import contextlib
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fretsaw.stage import artifact
from fretsaw.stage.peers import ALONE, Peers
from fretsaw.stage.progress import Progress, format_seconds, say
from fretsaw.stage.workers import HERE, Workers

ERROR = "error.txt"


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
    peers: Peers = ALONE
    workers: Workers = HERE
    stop_requested: bool = False
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def load_device(self) -> str:
        """Where to read a model to: the host where processes split it on the way to their GPUs."""
        return self.device if self.peers.size == 1 else "cpu"

    @property
    def resume_folder(self) -> Path:
        """Where state for a continuing run is kept; it is gone once the artifact is complete."""
        folder = self.folder / artifact.RESUME
        folder.mkdir(exist_ok=True)
        return folder

    def step(
        self,
        step: int,
        metrics: dict[str, float] | None = None,
        *,
        row: bool = True,
        save: Callable[[], None] | None = None,
        save_every_s: float = 0.0,
    ) -> None:
        """Report a finished step; the place where a stop that was asked for takes effect.

        With `save` the state is saved when `save_every_s` have passed, at the last step, and before
        stopping; all processes do so at the same step. The report comes first, for a run that goes
        on from an older state rewinds it.
        """
        self.progress.step(step, metrics, row=row)
        is_due = step >= self.progress.total or time.monotonic() - self.saved_at > save_every_s
        is_stopping, is_due = self.peers.any(self.stop_requested, is_due)
        if save is not None and (is_stopping or is_due):
            save()
            self.saved_at = time.monotonic()
        if is_stopping:
            raise Interrupted

    def check(self) -> None:
        """Let a stop that was asked for take effect between steps, where this process is alone."""
        if self.stop_requested:
            raise Interrupted


StageFunction = Callable[[Any, Mapping[str, Path], StageRun], dict[str, Any]]


def execute(
    function: StageFunction,
    request: artifact.StageRequest,
    settings: Any,
    out: Path,
    *,
    device: str,
    dtype: str,
    force: bool = False,
    peers: Peers = ALONE,
    workers: Workers = HERE,
) -> dict[str, Any]:
    """Run a stage unless its result is there; return the manifest either way.

    With peers all processes run the function, and rank 0 writes the artifact.
    """
    is_first = peers.rank == 0
    reason = peers.on_first(lambda: "made again" if force else artifact.staleness(out, request))
    if reason is None:
        say(f"{request.stage}: done already in {out}")
        return artifact.read_manifest(out)
    folder = peers.on_first(lambda: _open(out, request, device, dtype, force=force))
    progress = Progress(request.stage, folder if is_first else None)
    run = StageRun(folder, request.seed, device, dtype, progress, peers, workers)

    def request_stop(signal_number: int, frame: object) -> None:
        if run.stop_requested and signal_number == signal.SIGINT and peers.size == 1:
            raise KeyboardInterrupt  # Ctrl-C twice: at once, without saving
        run.stop_requested = True

    stops = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(stop, request_stop) for stop in stops]
    started = time.monotonic()
    try:
        metrics = function(settings, request.inputs, run)
    except Exception as error:
        if not isinstance(error, Interrupted):
            _record(error, folder, peers)
        raise
    finally:
        progress.close()
        for stop, handler in zip(stops, previous, strict=True):
            signal.signal(stop, handler)
    seconds = time.monotonic() - started
    extra = {"device": device, "dtype": dtype, "processes": peers.size, **asdict(workers)}
    manifest = peers.on_first(
        lambda: artifact.complete(out, request, metrics, seconds=seconds, extra=extra)
    )
    say(f"{request.stage}: finished in {format_seconds(seconds)} -> {out}")
    return manifest


def _open(
    out: Path, request: artifact.StageRequest, device: str, dtype: str, *, force: bool
) -> Path:
    folder = artifact.open_partial(out, request, force=force)
    artifact.write_json(folder / artifact.PRECISION, [device, dtype])
    (folder / ERROR).unlink(missing_ok=True)
    return folder


def _record(error: Exception, folder: Path, peers: Peers) -> None:
    """Keep the error for `fretsaw status`: the first one, for others may fail of its absence."""
    where = f"rank {peers.rank}: " if peers.size > 1 else ""
    with contextlib.suppress(FileExistsError), (folder / ERROR).open("x") as file:
        file.write(where + "".join(traceback.format_exception(error)))
