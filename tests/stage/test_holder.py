"""An output is one process's: the second is told whose, and a dead one's place is taken."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fretsaw.stage import holder, process_record
from fretsaw.stage.holder import hold, refuse_held
from fretsaw.stage.place import Refused
from fretsaw.stage.process_record import Holder

# Holds what it is given, says so, and ends when its input does.
HOLDS = """
import sys
from pathlib import Path
from fretsaw.stage.holder import hold
try:
    with hold(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except ValueError as error:
    print(error, flush=True)
"""


@contextmanager
def another(out: Path) -> Iterator[subprocess.Popen]:
    process = start(out)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def start(out: Path, before: str = "") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", before + HOLDS, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def path_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.holder")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_there_while_the_block_runs_whatever_ends_it(tmp_path: Path) -> None:
    out = tmp_path / "far" / "away" / "out"
    with hold(out):
        assert path_of(out).is_file()
        match = f"in use by another process .pid {os.getpid()} on"
        with pytest.raises(Refused, match=match), hold(out):
            pass
    assert left(tmp_path) == []  # the folders around it too, for nothing was written
    with pytest.raises(KeyboardInterrupt), hold(out):
        raise KeyboardInterrupt
    assert left(tmp_path) == []


def test_the_second_is_told_who_and_since_when(tmp_path: Path) -> None:
    with another(tmp_path / "out") as first:
        before = path_of(tmp_path / "out").read_bytes()
        with pytest.raises(Refused) as refused, hold(tmp_path / "out"):
            pass
        for part in (f"pid {first.pid}", "since 2", "fretsaw", "choose another --out"):
            assert part in str(refused.value)
        assert path_of(tmp_path / "out").read_bytes() == before
    assert left(tmp_path) == [".out.holder"]  # it was killed


def test_a_stopped_process_still_holds_and_a_killed_one_does_not(tmp_path: Path, capfd) -> None:
    with another(tmp_path / "out") as first:
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(Refused), hold(tmp_path / "out"):
            pass
        first.kill()
        deadline = time.monotonic() + 60
        while process_record.born_at(first.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)  # a zombie is dead, though its number is taken
        with hold(tmp_path / "out"):
            assert f"whoever held it is gone (pid {first.pid}" in capfd.readouterr().err
    assert left(tmp_path) == []


def test_another_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    path_of(out).write_text(json.dumps(asdict(replace(Holder.here(), born="1"))))
    with hold(out):
        pass
    assert left(tmp_path) == []


def elsewhere(out: Path, silent_s: float) -> Holder:
    """Leave the file of a process of another machine, which renewed it so long ago."""
    found = replace(Holder.here(), host="node7", machine="node7 boot", born="1", ticket="theirs")
    path_of(out).write_text(json.dumps(asdict(found)))
    then = time.time() - silent_s
    os.utime(path_of(out), (then, then))
    return found


def test_a_process_of_another_machine_lives_while_it_renews_its_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    elsewhere(out, 5)
    with pytest.raises(Refused, match="on node7, since"), hold(out):
        pass
    elsewhere(out, process_record.SILENT_S - 60)
    match = "said nothing for 4 min 0[0-9] s, and is taken over after 5 min"
    with pytest.raises(Refused, match=match), hold(out):
        pass
    elsewhere(out, process_record.SILENT_S + 60)
    with hold(out):
        assert json.loads(path_of(out).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    "content", [b"", b'{"pid": 4', b"[]", b"\xff\x00", b'{"pid": -1}', b"[" * 100_000]
)
def test_a_file_that_says_nothing_is_waited_for_and_then_taken(
    tmp_path: Path, content: bytes
) -> None:
    out = tmp_path / "out"
    path_of(out).write_bytes(content)
    then = time.time() - process_record.UNREADABLE_S + 1
    os.utime(path_of(out), (then, then))
    started = time.monotonic()
    with hold(out):
        assert time.monotonic() - started > 0.4
    assert left(tmp_path) == []


def test_numbers_that_are_no_process_are_dead() -> None:
    assert process_record.born_at(2**40) is None
    fields = asdict(Holder.here())
    for pid in (0, -1, True, 1.5, "1"):
        found = process_record.Found(json.dumps({**fields, "pid": pid}).encode(), 0, 0.0)
        assert found.holder is None


def test_of_many_that_find_a_dead_one_a_single_one_takes_its_place(tmp_path: Path) -> None:
    for round in range(3):
        out = tmp_path / f"out{round}"
        path_of(out).write_text(json.dumps(asdict(replace(Holder.here(), born="1"))))
        several = [start(out) for _ in range(6)]
        said = [process.stdout.readline() for process in several if process.stdout]
        assert said.count("held\n") == 1
        assert sum("in use by another process" in line for line in said) == 5
        for process in several:
            process.communicate()
    assert left(tmp_path) == []


def test_a_taker_that_died_on_the_way_is_no_obstacle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    dead = json.dumps(asdict(replace(Holder.here(), born="1"))).encode()
    path_of(out).write_bytes(dead)
    holder._claim_of(path_of(out), dead).write_bytes(dead)
    with hold(out):
        pass
    assert left(tmp_path) == []


def test_what_killed_takers_left_is_found(tmp_path: Path) -> None:
    alive = json.dumps(asdict(Holder.here()))
    dead = json.dumps(asdict(replace(Holder.here(), born="1")))
    mark = "{:016x}".format
    for name in (f".{mark(1)}.holding", f".claim-{mark(1)}.holder", ".mine.holding"):
        (tmp_path / name).write_text(dead)
    for name in (f".{mark(2)}.holding", f".claim-{mark(2)}.holder"):
        (tmp_path / name).write_text(alive)
    for name in (f".{mark(3)}.holding", f".{mark(4)}.holding"):
        (tmp_path / name).touch()
    os.utime(tmp_path / f".{mark(3)}.holding", (1, 1))
    found = sorted(path.name for path in holder.abandoned(tmp_path))
    assert found == [f".{mark(1)}.holding", f".{mark(3)}.holding", f".claim-{mark(1)}.holder"]


def test_without_hard_links_it_is_made_under_its_own_name(tmp_path: Path, monkeypatch) -> None:
    def refused(*paths: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with hold(tmp_path / "out"), pytest.raises(Refused), hold(tmp_path / "out"):
        pass
    assert left(tmp_path) == []


def test_a_run_holds_what_is_inside_but_for_its_own_stages(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "link").symlink_to(run)
    with hold(run) as ticket:
        for inside in (run / "rank", run / "1.5x" / "search", tmp_path / "link" / "rank"):
            with pytest.raises(Refused, match=f"{run}: in use"), hold(inside):
                pass
        with hold(run / "rank", within=ticket):
            pass
        with pytest.raises(Refused), hold(run / "rank", within="somebody else's"):
            pass
    assert left(run) == []
    assert left(tmp_path) == ["link", "run"]


def test_it_is_renewed_and_a_process_that_lost_it_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, "import fretsaw.stage.holder as holder; holder.BEAT_S = 0.1")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    os.utime(path_of(out), (1, 1))
    deadline = time.monotonic() + 60
    while path_of(out).stat().st_mtime < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path_of(out).stat().st_mtime > 2
    beside = tmp_path / "theirs"
    beside.write_text(json.dumps(asdict(Holder.here())))
    beside.rename(path_of(out))
    assert process.wait(timeout=120) == holder.EXIT_INTERRUPTED
    _, errors = process.communicate()
    assert "took this one for dead" in errors
    assert path_of(out).is_file()  # the other's


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    path_of(tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(Refused, match=r"\.out\.holder: a link to nothing"), hold(tmp_path / "out"):
        pass
    assert left(tmp_path) == [".out.holder"]


def test_asking_who_holds_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    elsewhere(out, silent_s=0)
    before = tmp_path.stat().st_mtime_ns
    for asked in (out, out / "inside"):
        with pytest.raises(Refused, match="on node7"):
            refuse_held(asked, only_reads=True)
    assert tmp_path.stat().st_mtime_ns == before


def test_where_nothing_can_be_written_the_folder_is_named(tmp_path: Path, monkeypatch) -> None:
    def refused(*args: object, **more: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(args[0]))

    monkeypatch.setattr(Path, "unlink", refused)
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)) as error, hold(tmp_path / "out"):
        pass
    assert error.value.filename == str(tmp_path)
