"""What the file system refuses, as one sentence: the path, what the system said, what to do."""

import errno
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import fretsaw

AGAIN = "run the same command again to go on from there"
FULL_WORDS = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))  # often only words come through
REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "give yourself the right to it, or choose another path",
    errno.EPERM: "give yourself the right to it, or choose another path",
    errno.EROFS: "choose a path that can be written",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EISDIR: "a folder stands where a file is needed; choose another path",
    errno.EEXIST: "something stands there already; remove it, or choose another path",
    errno.ENOTEMPTY: "something else writes there; choose another path",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "links lead in a circle there; choose another path",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.EIO: f"see to the disk, and {AGAIN}",
    errno.ESTALE: f"see to the network's disk, and {AGAIN}",
    errno.EFBIG: f"allow larger files (ulimit -f), and {AGAIN}",
}
OF_WRITING = (
    errno.EIO,
    errno.ESTALE,
    errno.EFBIG,
    errno.EROFS,
)  # often without a path


def sentence_of(error: BaseException) -> str | None:
    """Return the sentence, None where the error is no refusal of the file system's.

    A path of fretsaw's own or of Python's is the fault of whoever wrote or installed them.
    """
    found = list(behind(error))
    for one in found:
        if any(words in str(one) for words in FULL_WORDS):
            where = f"{_path_of(one)}: " if _path_of(one) else ""
            return f"{where}the disk is full; free some space and {AGAIN}"
    for one in found:
        if not isinstance(one, OSError) or one.errno is None:
            continue
        what = (one.strerror or os.strerror(one.errno)).lower()
        remedy, path = REMEDIES.get(one.errno, "choose another path"), _path_of(one)
        if path and one is error and not _is_installed(path):
            return f"{path}: {what}; {remedy}"
        if one.errno in OF_WRITING:
            return f"{path or 'a file'}: {what}; {remedy}"
    return None


def _path_of(error: BaseException) -> str:
    path = getattr(error, "filename", None)
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""


def behind(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came of."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += [one.__context__, one.__cause__, *_failures(one)]


def _failures(error: BaseException) -> list[BaseException]:
    """Return what torch's CheckpointException says went wrong, rank by rank."""
    failures = getattr(error, "failures", None)
    return [wrapped[0] for wrapped in failures.values()] if isinstance(failures, dict) else []


def _is_installed(path: str) -> bool:
    own = [Path(fretsaw.__file__).parent]
    own += [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    return any(Path(path).is_relative_to(folder) for folder in own)
