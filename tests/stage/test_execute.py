"""A stage that is asked to stop, once and again, and what a kill leaves of it for the next."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fretsaw.stage import artifact, leftovers
from fretsaw.stage.execute import StageRun, _stops_told, execute
from fretsaw.stage.progress import Progress

# Two steps of many micro-batches; a state is its step's number, and is saved slowly where asked.
COUNTS = """
import sys, time
from pathlib import Path
from test_execute import Settings
from fretsaw.cli import main
from fretsaw.stage import artifact, whole
from fretsaw.stage.execute import execute

def count(settings, inputs, run):
    state = run.resume_folder / "step"
    step = int(state.read_text()) if state.is_file() else 0

    def save():
        print("saving", flush=True)
        time.sleep(settings.save_s)
        whole.write_text(state, str(step))

    run.progress.start("counting", 2, step=step)
    while step < 2:
        print("begun", step, flush=True)
        for _ in range(settings.micro_batches):
            run.check_sooner()
            time.sleep(0.02)
        step += 1
        run.step(step, save=save)
    (run.folder / "made.txt").write_text("made")
    return {"steps": step}

def command(argv):
    settings = Settings(micro_batches=int(argv[1]), save_s=float(argv[2]))
    request = artifact.StageRequest.of("count", Settings(), {}, 0)
    execute(count, request, settings, Path(argv[0]), device="cpu", dtype="fp32")

import fretsaw.cli
fretsaw.cli.command = lambda name: command
sys.exit(main(["count", *sys.argv[1:]]))
"""


@dataclass(frozen=True)
class Settings:
    micro_batches: int = 1
    save_s: float = 0.0


def start(out: Path, micro_batches: int = 1, save_s: float = 0.0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COUNTS, str(out), str(micro_batches), str(save_s)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(stream: Any, word: str) -> str:
    read = ""
    while word not in read:
        line = stream.readline()
        assert line, f"it ended before it said {word!r}: {read}"
        read += line
    return read


def finish(out: Path, *said: str) -> None:
    """Run the same command to its end, and see that nothing else is left there."""
    process = start(out)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    for words in said:
        assert words in errors
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]
    assert not (out / artifact.RESUME).exists()
    assert (out / "made.txt").read_text() == "made"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_answered_at_once_and_takes_effect_after_the_step(
    tmp_path: Path, stop: int
) -> None:
    out = tmp_path / "out"
    process = start(out, micro_batches=50)
    read_until(process.stdout, "begun 0")
    process.send_signal(stop)
    read_until(process.stderr, "stopping after this step (a second one stops sooner)")
    assert process.poll() is None
    other = start(out)
    _, errors = other.communicate(timeout=60)
    assert other.returncode == 2
    assert f"in use by another process (pid {process.pid} on" in errors
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "saving" in said
    assert "the same command goes on from here" in errors
    finish(out, "counting, goes on at step 2 of 2")


def test_a_second_stop_ends_the_step_and_keeps_what_was_saved(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, micro_batches=5000)
    read_until(process.stdout, "begun 0")
    process.send_signal(signal.SIGTERM)
    read_until(process.stderr, "stopping after this step")
    process.send_signal(signal.SIGTERM)  # at once: the same request, passed on by someone else
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    read_until(process.stderr, "stopping within this step")
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "saving" not in said
    finish(out, "counting, 2 steps")


def test_while_a_state_is_saved_there_is_nothing_sooner_than_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, save_s=600)
    read_until(process.stdout, "saving")
    process.send_signal(signal.SIGTERM)
    read_until(process.stderr, "stopping after this step")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert (tmp_path / ".out.holder").is_file()
    finish(out, "whoever held it is gone", "counting, 2 steps")


def test_what_kills_leave_is_cleared_by_the_next_command(tmp_path: Path) -> None:
    out = tmp_path / "o[u]t"
    finish(out)
    left = [".o[u]t.77.tmp", ".o[u]t.old"]
    for name in (*left, ".other.77.tmp", "o[u]t/resume", "o[u]t/resume/.step-1.tmp"):
        (tmp_path / name).mkdir()
    for name in (
        "o[u]t/request.json",
        "o[u]t/precision.json",
        "o[u]t/.made.txt.77.tmp",
        "o[u]t/.tmpAb3dE9",
    ):
        (tmp_path / name).write_text("[]")
    process = start(out)
    _, errors = process.communicate(timeout=60)
    assert "done already" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.77.tmp", out.name]
    assert sorted(path.name for path in out.iterdir()) == [
        *("made.txt", "manifest.json", "status.json")
    ]


def test_the_only_copy_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    leftovers.clear(tmp_path / "out")
    assert (tmp_path / ".out.old").is_dir()


class NoException(BaseException):
    """As torch's CheckpointException is."""


@pytest.mark.parametrize("error", [NoException("lost"), OSError(5, "Input/output error")])
def test_any_error_is_kept_and_frees_the_folder(tmp_path: Path, error: BaseException) -> None:
    def fail(settings: Settings, inputs: Any, run: StageRun) -> dict:
        raise error

    out = tmp_path / "out"
    request = artifact.StageRequest.of("count", Settings(), {}, 0)
    with pytest.raises(type(error)):
        execute(fail, request, Settings(), out, device="cpu", dtype="fp32")
    assert str(error) in (tmp_path / ".out.partial" / "error.txt").read_text()
    assert not (tmp_path / ".out.holder").exists()


def test_an_error_that_cannot_be_kept_is_still_the_one_that_is_raised(tmp_path: Path) -> None:
    def fail(settings: Settings, inputs: Any, run: StageRun) -> dict:
        (run.folder / "error.txt").symlink_to("/dev/full")
        raise RuntimeError("the first error")

    request = artifact.StageRequest.of("count", Settings(), {}, 0)
    with pytest.raises(RuntimeError, match="the first error"):
        execute(fail, request, Settings(), tmp_path / "out", device="cpu", dtype="fp32")


def test_stops_that_follow_one_another_closely_still_count(tmp_path: Path) -> None:
    run = StageRun(tmp_path, 0, "cpu", "fp32", Progress("count"))
    with _stops_told(run):
        for stops_sooner in (False, False, True):  # the second of a pair is the same request
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            assert (run.stop_requested, run.stops_sooner) == (True, stops_sooner)


def test_old_files_on_the_way_to_a_holder_are_cleared(tmp_path: Path) -> None:
    old = [f".{16 * '0'}.holding", f".claim-{16 * 'a'}.holder"]
    young = [f".{16 * '1'}.holding", f".claim-{16 * 'b'}.holder"]
    for name in (*old, *young, ".mine.holding"):
        (tmp_path / name).touch()
    for name in (*old, ".mine.holding"):
        os.utime(tmp_path / name, (0, 0))
    leftovers.clear(tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {*young, ".mine.holding"}
