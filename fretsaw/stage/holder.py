"""Who is writing an output: a file beside it, by which a second process leaves it alone.

`.NAME.holder` says which process holds `NAME` and is gone when that process is done. It is made by
a hard link, which network file systems do in one step, never by a lock. A dead holder is taken
over; `process_record` says which are dead.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from fretsaw.stage.artifact import Refused
from fretsaw.stage.place import check_place
from fretsaw.stage.process_record import BEAT_S, SILENT_S, Found, Holder, machine
from fretsaw.stage.progress import format_seconds, say

EXIT_LOST = 75
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


@contextlib.contextmanager
def hold(out: Path, *, within: str = "") -> Iterator[str]:
    """Hold an output while the block runs; yield the token by which children are let in.

    `within` is the token of the run that started this process and holds a folder around `out`.
    Raises `Refused` where another process holds it or a folder around it; nothing is touched then.
    """
    check_place(out)
    path, own = _path_of(out), Holder.here()
    made = _make_folders(path.parent)
    try:
        _take(path, own, out)
        _clear(path.parent)
    except BaseException:
        _remove_folders(made)
        raise
    ended = threading.Event()
    try:
        around = out.absolute().parent.resolve()
        for folder in (around, *around.parents)[:-1]:
            refuse_held(folder, within=within)
        threading.Thread(target=_beat, args=(path, own, ended), daemon=True).start()
        yield own.token
    finally:
        ended.set()
        if os.getpid() == own.pid:  # and no fork of it
            with contextlib.suppress(OSError):
                if _token_in(path) == own.token:
                    path.unlink()
            _remove_folders(made)


def refuse_held(out: Path, *, within: str = "") -> None:
    """Raise `Refused` where a process that lives holds `out`, other than by the token `within`."""
    path = _path_of(out)
    if not path.exists():
        return
    found = _look(path)
    if found is None or not found.is_alive:
        return
    holder = found.holder
    if holder is None or holder.token != within:
        raise Refused(_refusal(out, found))


def _path_of(out: Path) -> Path:
    out = out.absolute()
    return out.with_name(f".{out.name}.holder")


def _refusal(out: Path, found: Found) -> str:
    holder = found.holder
    if holder is None:
        return (
            f"{out}: in use by a process whose {_path_of(out).name} can't be read, but is renewed; "
            "wait for it to end, or choose another --out"
        )
    silent = (
        f"; it has said nothing for {format_seconds(found.silent_s)}, and is taken over after "
        f"{format_seconds(SILENT_S)}"
        if holder.machine != machine() and found.silent_s > 3 * BEAT_S
        else ""
    )
    return (
        f"{out}: in use by another process ({holder}){silent}; wait for it to end, or choose "
        "another --out"
    )


def _take(path: Path, own: Holder, out: Path) -> None:
    """Make the holder's file, in place of a dead one's; raise `Refused` where one lives."""
    while not _create(path, own):
        found = _look(path)
        if found is None:
            continue
        if found.holder is None and found.is_alive:  # wait: a dead one is not renewed
            time.sleep(0.5)
            continue
        if found.is_alive:
            raise Refused(_refusal(out, found))
        if _remove_dead(path, found, own, out) and not path.name.startswith(".claim-"):
            whom = found.holder or "its file can't be read"
            say(f"{out}: whoever held it is gone ({whom}); this process takes its place")


def _create(path: Path, own: Holder) -> bool:
    """Make a file that names `own`, whole in one step; return whether there was none."""
    content = json.dumps(asdict(own)).encode()
    beside = path.with_name(f".{secrets.token_hex(8)}.holding")
    try:
        _write_new(beside, content)
        os.link(beside, path)
    except FileExistsError:
        return _token_in(path) == own.token  # a network repeats requests, and finds its own link
    except OSError as error:
        if error.errno not in NO_LINKS or not beside.exists():
            raise
        return _create_without_links(path, content)
    finally:
        beside.unlink(missing_ok=True)
    return True


def _create_without_links(path: Path, content: bytes) -> bool:
    try:
        _write_new(path, content)
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _write_new(path: Path, content: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise
    except OSError as error:  # of the folder: a name that is ours says nothing to the user
        raise OSError(error.errno, error.strerror, str(path.parent)) from error


def _token_in(path: Path) -> str | None:
    """Return whom a file names, None where it is gone or says nothing."""
    try:
        holder = Found(path.read_bytes(), 0, 0.0).holder
    except FileNotFoundError:
        return None
    return holder.token if holder is not None else None


def _look(path: Path) -> Found | None:
    """Read a holder's file, None where it is gone."""
    probe = path.with_name(f".{secrets.token_hex(8)}.holding")
    try:
        with path.open("rb") as file:
            renewed_ns, content = os.fstat(file.fileno()).st_mtime_ns, file.read()
        _write_new(probe, b"")
        now_ns = probe.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    finally:
        probe.unlink(missing_ok=True)
    return Found(content, renewed_ns, (now_ns - renewed_ns) / 1e9)


def _remove_dead(path: Path, found: Found, own: Holder, out: Path) -> bool:
    """Remove the file that was found, and no other; return whether it was this process.

    Of several that found it, one at a time may: the claim is a holder's file too, and what stands
    there by then is compared with what was found.
    """
    claim = _claim_of(path, found.content)
    try:
        _take(claim, own, out)
    except Refused:
        time.sleep(0.05)  # the other is about to be done
        return False
    try:
        again = _look(path)
        is_same = again is not None and (again.content, again.renewed_ns) == (
            found.content,
            found.renewed_ns,
        )
        if is_same:
            path.unlink()
        return is_same
    finally:
        claim.unlink(missing_ok=True)


def _claim_of(path: Path, content: bytes) -> Path:
    mark = hashlib.sha256(os.fsencode(path.name) + content).hexdigest()[:16]
    return path.with_name(f".claim-{mark}.holder")


def _clear(folder: Path) -> None:
    """Remove what processes left here that were killed while they took hold of something."""
    for pattern in (".*.holding", ".claim-*.holder"):
        for path in folder.glob(pattern):
            found = _look(path)
            if found is not None and not found.is_alive:
                path.unlink(missing_ok=True)


def _beat(path: Path, own: Holder, ended: threading.Event) -> None:
    """Renew the file's time; end this process where another has taken its place."""
    while not ended.wait(BEAT_S):
        with contextlib.suppress(OSError):  # a network that is away for a while
            token = _token_in(path)
            if token == own.token:
                os.utime(path)
            elif token is not None and not ended.is_set():
                say(f"fretsaw: {path}: another process took this one for dead, so it ends here")
                os._exit(EXIT_LOST)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder with those around it; return those that were not there, the inmost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_folders(made: list[Path]) -> None:
    for folder in made:
        with contextlib.suppress(OSError):  # no longer empty: it is used
            folder.rmdir()
