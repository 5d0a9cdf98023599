"""A file system that says no while a stage works: one sentence, and the same command goes on."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fretsaw.cli import main

TRAIN = (
    *("--seq-len", "64", "--batch-tokens", "512", "--micro-batch-tokens", "512"),
    *("--heldout-tokens", "256", "--device", "cpu", "--dtype", "fp32"),
)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory where one may be; skip where not."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here, so none can be full or read-only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def distill(tiny: Path, out: Path, steps: int, *more: str) -> list[str]:
    parent = str(tiny / "parent")
    return [
        *("distill", "--child", parent, "--parent", parent, "--corpus", str(tiny / "corpus")),
        *(*TRAIN, "--tokens", str(512 * steps), "--out", str(out), *more),
    ]


def refused(capfd: pytest.CaptureFixture, arguments: list[str]) -> str:
    assert main(arguments) == 2
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    return errors.strip().splitlines()[-1]


def fill(folder: Path, leave: int) -> Path:
    """Fill a file system but for some bytes; return the file to remove."""
    path = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    path.write_bytes(bytes(max(0, free - leave)))
    return path


@pytest.mark.parametrize("leave", [0, 8 << 10, 100 << 10, 400 << 10, 900 << 10, 1300 << 10])
def test_a_disk_that_is_full_loses_nothing(
    capfd, tiny: Path, tmp_path: Path, leave: int, monkeypatch
) -> None:
    monkeypatch.setattr("fretsaw.stage.artifact.require_disk", lambda folder, num_bytes: None)
    with mounted(tmp_path / "small", "size=16m") as disk:
        command = distill(tiny, disk / "child", 6, "--save-every-s", "0")
        filler = fill(disk, leave)
        message = refused(capfd, command)
        assert "the disk is full; free some space and run the same command again" in message
        assert not (disk / ".child.holder").exists()
        filler.unlink()
        assert main(command) == 0
        assert sorted(path.name for path in disk.iterdir()) == ["child"]
        assert not (disk / "child" / "resume").exists()


def test_a_disk_that_fills_on_the_way_keeps_the_last_state(
    capfd, tiny: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("fretsaw.stage.artifact.require_disk", lambda folder, num_bytes: None)
    with mounted(tmp_path / "small", "size=16m") as disk:
        command = distill(tiny, disk / "child", 6, "--save-every-s", "0")
        filler = fill(disk, 1900 << 10)  # room for a state or two
        refused(capfd, command)
        states = sorted((disk / ".child.partial" / "resume").glob("step-*"))
        assert states
        filler.unlink()
        assert main(command) == 0
        step = int(states[-1].name.removeprefix("step-"))
        if step:
            assert f"goes on at step {step + 1} of 6" in capfd.readouterr().err


def test_an_export_to_a_full_disk(capfd, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    for room in ("export.export", "checkpoint.folder"):
        monkeypatch.setattr(f"fretsaw.{room}.require_disk", lambda folder, num_bytes: None)
    with mounted(tmp_path / "small", "size=1m") as disk:
        command = ["export", str(tiny / "parent"), "--out", str(disk / "child")]
        filler = fill(disk, 60 << 10)
        assert "the disk is full" in refused(capfd, command)
        assert sorted(path.name for path in disk.iterdir()) == ["filler"]
        filler.unlink()
        assert main(command) == 0


@pytest.mark.parametrize("name", ["corpus", "deep/er/corpus"])
def test_a_place_that_is_read_only(capfd, tiny: Path, tmp_path: Path, name: str) -> None:
    with mounted(tmp_path / "fixed", "size=1m,ro") as disk:
        arguments = ["corpus", "--source", "world", "--max-tokens", "20000"]
        message = refused(capfd, [*arguments, "--out", str(disk / name)])
        assert f"{disk}" in message
        assert "read-only file system; choose a path that can be written" in message


def test_a_file_that_may_not_grow(capfd, tiny: Path, tmp_path: Path) -> None:
    command = distill(tiny, tmp_path / "child", 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        message = refused(capfd, command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "file too large; allow larger files (ulimit -f)" in message
    assert main(command) == 0


CACHES = {
    "a file": lambda folder: (folder / "cache").write_text("mine"),
    "below a file": lambda folder: (folder / "cache").symlink_to(folder / "file" / "below"),
    "a circle": lambda folder: (folder / "cache").symlink_to("cache"),
    "a device": lambda folder: (folder / "cache").symlink_to("/dev/full"),
    "processes": lambda folder: (folder / "cache").symlink_to("/proc"),
}


@pytest.mark.parametrize("what", CACHES)
def test_the_cache_of_hashes_is_optional(tmp_path: Path, monkeypatch, what: str) -> None:
    from fretsaw.stage.hashes import hash_file

    (tmp_path / "file").write_text("mine")
    (tmp_path / "weights").write_bytes(bytes(2 << 20))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "good"))
    expected = hash_file(tmp_path / "weights")
    (kept,) = (tmp_path / "good" / "fretsaw" / "hashes").iterdir()
    for damaged in (b"", b"00", expected.encode()[:-1], b"\xff" * 64):
        kept.write_bytes(damaged)
        assert hash_file(tmp_path / "weights") == expected
        assert kept.read_text() == expected
    CACHES[what](tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert hash_file(tmp_path / "weights") == expected


def test_a_user_without_a_home_has_no_cache(tmp_path: Path, monkeypatch) -> None:
    from fretsaw.stage.hashes import hash_file

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    (tmp_path / "weights").write_bytes(bytes(2 << 20))
    assert len(hash_file(tmp_path / "weights")) == 64
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert len(hash_file(tmp_path / "weights")) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_fault_of_ours_is_no_users(capfd, monkeypatch) -> None:
    import fretsaw

    own = str(Path(fretsaw.__file__).parent / "serve" / "page.html")
    for error in (OSError(errno.EBADF, "Bad file descriptor"), FileNotFoundError(2, "no", own)):

        def fail(name: str, error: OSError = error) -> None:
            raise error

        monkeypatch.setattr("fretsaw.cli.command", fail)
        with pytest.raises(OSError, match=str(error.strerror)):
            main(["inspect", "x"])
