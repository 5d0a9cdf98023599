"""Calls of the C library that Python has no function for."""

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | ctypes.Array | None) -> int:
    """Call a function of the C library; raises OSError, named after it, where it returns -1."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = getattr(_LIBC, name)(*words)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def system_call(number: int, *arguments: int | bytes | ctypes.Array | None) -> int:
    """Make a system call by its number; raises OSError where it fails."""
    return call("syscall", number, *arguments)
