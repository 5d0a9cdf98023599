"""What every stage is given while it runs, and the two ways it can end early."""

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fretsaw.stage import artifact, leftovers, whole
from fretsaw.stage.holder import hold, refuse_held
from fretsaw.stage.peers import ALONE, Peers
from fretsaw.stage.progress import Progress, format_seconds, say
from fretsaw.stage.workers import HERE, Workers

ERROR = "error.txt"
ONE_REQUEST_S = 0.3  # a terminal's Ctrl-C comes twice: once more from whoever started this process
SAVING_SHARE = 0.05  # of a run's time, at most


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
    stops_sooner: bool = False  # it was asked for twice
    is_saving: bool = False
    saved_at: float = field(default_factory=time.monotonic)
    save_took_s: float = 0.0  # the last save

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
        stopping; all processes do so at the same step. A slow save waits for longer, so that saving
        is at most `SAVING_SHARE` of the time; a `save_every_s` of 0 saves at every step. The report
        comes first, for a run that goes on from an older state rewinds it.
        """
        self.progress.step(step, metrics, row=row)
        wait_s = save_every_s and max(save_every_s, self.save_took_s / SAVING_SHARE)
        is_due = step >= self.progress.total or time.monotonic() - self.saved_at > wait_s
        is_stopping, is_due = self.peers.any(self.stop_requested, is_due)
        if save is not None and (is_stopping or is_due):
            self.is_saving, started = True, time.monotonic()
            save()
            self.is_saving = False
            self.saved_at = time.monotonic()
            self.save_took_s = self.saved_at - started
        if is_stopping:
            raise Interrupted

    def check(self) -> None:
        """Let a stop that was asked for take effect between steps, where this process is alone."""
        if self.stop_requested:
            raise Interrupted

    def check_sooner(self) -> None:
        """Let a stop that was asked for twice take effect within a step, whose work is lost.

        All processes call this as often: before each micro-batch.
        """
        if self.peers.any(self.stops_sooner)[0]:
            raise Interrupted

    def request_stop(self, signal_number: int) -> None:
        """Note that the process is asked to stop, and say when it will; the third time is at once.

        So is the second where a state is being saved, for there is nothing sooner.
        """
        if self.stops_sooner or (self.stop_requested and self.is_saving):
            signal.signal(signal_number, signal.SIG_DFL)
            os.kill(os.getpid(), signal_number)
        elif self.stop_requested:
            self.stops_sooner = True
            _tell(self.peers, "stopping within this step, whose work is lost (a third: at once)")
        else:
            self.stop_requested = True
            _tell(self.peers, "stopping after this step (a second one stops sooner)")


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
    within: str = "",
) -> dict[str, Any]:
    """Run a stage unless its result is there; return the manifest either way.

    With peers all processes run the function, and rank 0 writes the artifact, which it holds for
    all of them. `within` is the ticket of a run that holds a folder around `out`.
    """
    with contextlib.ExitStack() as held:

        def find() -> str | None:
            held.enter_context(hold(out, within=within))
            return _find(request, out, force=force)

        if peers.on_first(find) is None:
            say(f"{request.stage}: done already in {out}")
            return artifact.read_manifest(out)
        folder = peers.on_first(lambda: _open(out, request, device, dtype, force=force))
        progress = Progress(request.stage, folder if peers.rank == 0 else None)
        run = StageRun(folder, request.seed, device, dtype, progress, peers, workers)
        started = time.monotonic()
        metrics = _call(function, request, settings, run)
        seconds = time.monotonic() - started
        extra = {"device": device, "dtype": dtype, "processes": peers.size, **asdict(workers)}
        manifest = peers.on_first(
            lambda: artifact.complete(out, request, metrics, seconds=seconds, extra=extra)
        )
        say(f"{request.stage}: finished in {format_seconds(seconds)} -> {out}")
        return manifest


def finish(request: artifact.StageRequest, out: Path, *, within: str = "") -> bool:
    """Return whether the result is there, once what a kill left beside it is cleared.

    Where nothing is left it only reads. So a stage is told to be done before what it computes with
    is imported. Raises `Refused` where the folder is not ours to replace, or another process holds
    it.
    """
    refuse_held(out, within=within)
    if artifact.staleness(out, request) is not None:
        return False
    if artifact.found_as(out) == out and next(leftovers.find(out), None) is None:
        return True
    with hold(out, within=within):
        return _find(request, out) is None


def _find(request: artifact.StageRequest, out: Path, *, force: bool = False) -> str | None:
    """Say why the stage has to run, None where it has; the holder of `out` clears what is left."""
    artifact.settle(out)
    reason = "made again" if force else artifact.staleness(out, request)
    leftovers.clear(out)
    return reason


def _call(
    function: StageFunction, request: artifact.StageRequest, settings: Any, run: StageRun
) -> dict[str, Any]:
    """Call the stage's function; what it raises is kept, torch's errors that are none among it."""
    try:
        with _stops_told(run):
            return function(settings, request.inputs, run)
    except BaseException as error:
        if not isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
            _record(error, run.folder, run.peers)
        raise
    finally:
        run.progress.close()


@contextlib.contextmanager
def _stops_told(run: StageRun) -> Iterator[None]:
    """Have SIGTERM and Ctrl-C ask the run to stop while the block runs."""
    heard_at = -ONE_REQUEST_S

    def hear(signal_number: int, frame: object) -> None:
        nonlocal heard_at
        now = time.monotonic()
        if now - heard_at >= ONE_REQUEST_S:
            heard_at = now  # of one that counts: else many in a row would count as one
            run.request_stop(signal_number)

    stops = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(stop, hear) for stop in stops]
    try:
        yield
    finally:
        for stop, handler in zip(stops, previous, strict=True):
            signal.signal(stop, handler)


def _tell(peers: Peers, message: str) -> None:
    """Write a line past Python's buffers, which a signal may find in the middle of another line."""
    if peers.rank == 0:
        before = "\n" if os.isatty(2) else ""  # a bar's line ends without one
        with contextlib.suppress(OSError):
            os.write(2, f"{before}fretsaw: {message}\n".encode())


def _open(
    out: Path, request: artifact.StageRequest, device: str, dtype: str, *, force: bool
) -> Path:
    folder = artifact.open_partial(out, request, force=force, tell=say)
    whole.write_json(folder / artifact.PRECISION, [device, dtype])
    (folder / ERROR).unlink(missing_ok=True)
    return folder


def _record(error: BaseException, folder: Path, peers: Peers) -> None:
    """Keep the error for `fretsaw status`: the first one, for others may fail of its absence.

    A full disk holds none of it, and then must not stand in the error's place.
    """
    where = f"rank {peers.rank}: " if peers.size > 1 else ""
    with contextlib.suppress(OSError), (folder / ERROR).open("x") as file:
        file.write(where + "".join(traceback.format_exception(error)))
