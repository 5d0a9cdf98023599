"""Landlock: a process gives up all files but some that it may read, with no namespaces.

https://docs.kernel.org/userspace-api/landlock.html
"""

import os
import struct
from collections.abc import Iterable

from fretsaw.sandbox import libc

FIRST_ABI = 3  # since which files cannot be cut short unseen: Linux 6.2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 1, 1 << 2, 1 << 3
_ALL_OF_FIRST_ABI = (1 << 15) - 1
_NO_NEW_PRIVILEGES = 38


def abi() -> int:
    """Return the kernel's version of Landlock, 0 where it has none."""
    try:
        return libc.system_call(_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def restrict(readable: Iterable[str]) -> None:
    """Give up every file and folder but those beneath `readable`, and of those all but reading.

    What is written to /dev/null can still be, as everywhere.
    """
    ruleset = libc.system_call(_CREATE_RULESET, struct.pack("Q", _ALL_OF_FIRST_ABI), 8, 0)
    folder, file = _READ_FILE | _READ_FOLDER, _READ_FILE
    allowed = {path: folder if os.path.isdir(path) else file for path in readable}
    allowed |= {"/dev/urandom": _READ_FILE, "/dev/null": _READ_FILE | _WRITE_FILE}
    for path, access in allowed.items():
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access, place)
        libc.system_call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        os.close(place)
    libc.call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.system_call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
