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
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from fretsaw.stage.exit_codes import EXIT_INTERRUPTED
from fretsaw.stage.place import Refused, check_place
from fretsaw.stage.process_record import BEAT_S, SILENT_S, Found, Holder, machine
from fretsaw.stage.progress import format_seconds, say

WAYSIDE = re.compile(r"\.[0-9a-f]{16}\.holding|\.claim-[0-9a-f]{16}\.holder")
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


@contextlib.contextmanager
def hold(out: Path, *, within: str = "") -> Iterator[str]:
    """Hold an output while the block runs; yield the ticket by which children are let in.

    `within` is the ticket of the run that started this process and holds a folder around `out`.
    Raises `Refused` where another process holds it or a folder around it; nothing is touched then.
    """
    check_place(out)
    path, own = _path_of(out), Holder.here()
    made = _make_folders(path.parent)
    try:
        _take(path, own, out)
    except BaseException:
        _remove_folders(made)
        raise
    ended = threading.Event()
    try:
        for folder in _around(out):
            _refuse_held(folder, within, _look_and_date)
        threading.Thread(target=_beat, args=(path, own, ended), daemon=True).start()
        yield own.ticket
    finally:
        ended.set()
        if os.getpid() == own.pid:  # and no fork of it
            with contextlib.suppress(OSError):
                if _ticket_in(path) == own.ticket:
                    path.unlink()
            _remove_folders(made)


def refuse_held(out: Path, *, within: str = "", only_reads: bool = False) -> None:
    """Raise `Refused` where another process holds `out` or a folder around it.

    `within` is the ticket of a run whose stage asks. To date a file of another machine a probe is
    written beside it; with `only_reads` this machine's clock must do.
    """
    for folder in (out, *_around(out)):
        _refuse_held(folder, within, _look if only_reads else _look_and_date)


def is_held(out: Path) -> bool:
    """Whether a process that lives holds `out`; only reads."""
    found = _look(_path_of(out))
    return found is not None and found.is_alive


def _refuse_held(folder: Path, within: str, look: Callable[[Path], Found | None]) -> None:
    found = look(_path_of(folder))
    if found is None or not found.is_alive:
        return
    if found.holder is None or found.holder.ticket != within:
        raise Refused(_refusal(folder, found))


def abandoned(folder: Path) -> Iterator[Path]:
    """Yield what killed processes left in a folder on the way to a holder's file; only reads."""
    for path in (*folder.glob(".*.holding"), *folder.glob(".claim-*.holder")):
        found = _look(path) if WAYSIDE.fullmatch(path.name) else None
        if found is not None and not found.is_alive:
            yield path


def _around(out: Path) -> tuple[Path, ...]:
    """Return the folders around an output, but for the root."""
    around = out.absolute().parent.resolve()
    return (around, *around.parents)[:-1]


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
        if path.is_symlink() and not path.exists():
            raise Refused(f"{path}: a link to nothing, where {out} is held; remove it")
        found = _look_and_date(path)
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
        return _ticket_in(path) == own.ticket  # a network repeats requests, and finds its own link
    except OSError as error:
        if error.errno not in NO_LINKS or not beside.exists():
            raise
        return _create_without_links(path, content)
    finally:
        with contextlib.suppress(OSError):  # the error that came before says more
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


def _ticket_in(path: Path) -> str | None:
    """Return whom a file names, None where it is gone or says nothing."""
    try:
        holder = Found(path.read_bytes(), 0, 0.0).holder
    except FileNotFoundError:
        return None
    return holder.ticket if holder is not None else None


def _look(path: Path) -> Found | None:
    """Read a holder's file, None where it is gone; its age is by this machine's clock."""
    try:
        with path.open("rb") as file:
            renewed_ns, content = os.fstat(file.fileno()).st_mtime_ns, file.read()
    except FileNotFoundError:
        return None
    return Found(content, renewed_ns, (time.time_ns() - renewed_ns) / 1e9)


def _look_and_date(path: Path) -> Found | None:
    """Read a holder's file, None where it is gone; its age, if it counts, by the file system."""
    found = _look(path)
    if found is None or (found.holder is not None and found.holder.machine == machine()):
        return found
    probe = path.with_name(f".{secrets.token_hex(8)}.holding")
    try:
        _write_new(probe, b"")
        now_ns = probe.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    finally:
        with contextlib.suppress(OSError):  # the error that came before says more
            probe.unlink(missing_ok=True)
    return replace(found, silent_s=(now_ns - found.renewed_ns) / 1e9)


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
        again = _look_and_date(path)
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


def _beat(path: Path, own: Holder, ended: threading.Event) -> None:
    """Renew the file's time; end this process where another has taken its place."""
    while not ended.wait(BEAT_S):
        with contextlib.suppress(OSError):  # a network that is away for a while
            ticket = _ticket_in(path)
            if ticket == own.ticket:
                os.utime(path)
            elif ticket is not None and not ended.is_set():
                say(f"fretsaw: {path}: another process took this one for dead, so it ends here")
                os._exit(EXIT_INTERRUPTED)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder with those around it; return those that were not there, the inmost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_folders(made: list[Path]) -> None:
    for folder in made:
        with contextlib.suppress(OSError):  # no longer empty: it is used
            folder.rmdir()
