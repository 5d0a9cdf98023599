"""Which errors are the file system's no, and how they are told."""

import errno
import os

import pytest

from fretsaw.stage.file_errors import sentence_of


class Wrapped(BaseException):
    """As torch's CheckpointException: no Exception, with an error a rank."""

    def __init__(self, error: Exception):
        super().__init__("ranks:dict_keys([0])")
        self.failures = {0: (error, None)}


def raised(error: Exception, behind: Exception) -> Exception:
    try:
        raise error from behind
    except Exception as known:
        return known


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
SAFETENSORS = RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "error",
    [FULL, SAFETENSORS, Wrapped(FULL), Wrapped(raised(RuntimeError("zip"), FULL)),
     raised(RuntimeError("zip"), FULL), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))],
)  # fmt: skip
def test_a_full_disk_wherever_it_is_said(error: BaseException) -> None:
    message = sentence_of(error)
    assert message == (
        "the disk is full; free some space and run the same command again to go on from there"
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ELOOP, errno.EEXIST, 9999])
def test_a_path_is_told_with_a_remedy(number: int) -> None:
    message = sentence_of(OSError(number, "What It Said", b"/data/\xff"))
    assert message is not None
    assert message.startswith("/data/\udcff: what it said; ")


def test_the_disk_named_where_the_error_names_it() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")
    assert (sentence_of(error) or "").startswith("/data/x: the disk is full; ")


def test_what_is_no_refusal_stays_an_error() -> None:
    path = FileNotFoundError(errno.ENOENT, "No such file", "/data/x")
    for error in (
        OSError("in words"),
        OSError(errno.EBADF, "Bad file descriptor"),
        RuntimeError("wrong"),
        raised(RuntimeError("wrong"), path),  # it was handled, and then we failed
        KeyError("key"),
        FileNotFoundError(errno.ENOENT, "No such file", os.__file__),
    ):
        assert sentence_of(error) is None


def test_errors_behind_one_another_in_a_circle() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert sentence_of(one) is None
