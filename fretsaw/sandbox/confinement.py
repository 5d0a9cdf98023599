"""What a process gives up before it runs a program under test."""

import ctypes
import fcntl
import math
import os
import resource
import signal
import struct
from collections.abc import Sequence

from fretsaw.sandbox import filter, libc
from fretsaw.sandbox.limits import Limits

_MIB = 1 << 20
_MAX_FILES = 64
_STACK_MIB = 64  # of the main thread
_SET_DEATH_SIGNAL, _KEEP_CAPABILITIES = 1, 8  # of prctl
_CAPABILITIES_VERSION = 0x20080522
_DAC_READ_SEARCH = 1 << 2


def keep_only(fds: Sequence[int]) -> None:
    """Make these the files 0, 1, 2, ... of the process, and close all others."""
    for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]):
        os.dup2(fd, number)
    os.closerange(len(fds), os.sysconf("SC_OPEN_MAX"))


def confine(limits: Limits, *, user: int | None, can_write: bool) -> None:
    """Limit this process, take its rights, and filter its calls: for the rest of its life.

    `user` is who it becomes, None where it stays who it is (it is not root, or root by name alone).
    """
    os.umask(0o077)
    if user is not None:
        libc.call("prctl", _KEEP_CAPABILITIES, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    # Python itself may lie under a home that the new user could not enter; what can be read is for
    # the mounts, or Landlock, to say
    _keep_capabilities(_DAC_READ_SEARCH if user is not None else 0)
    libc.call("prctl", _SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)  # which a change of user clears
    # a net under the zygote's own watch: in whole seconds, by a clock that may be a tenth ahead
    ends_s = math.ceil(1.25 * limits.cpu_s) + 1
    hard = {
        resource.RLIMIT_CPU: ends_s,
        resource.RLIMIT_AS: limits.memory_mib * _MIB,
        resource.RLIMIT_FSIZE: limits.output_mib * _MIB,
        resource.RLIMIT_NOFILE: _MAX_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_STACK: _STACK_MIB * _MIB,
    }
    if user is not None or can_write:  # who then has no processes outside
        hard[resource.RLIMIT_NPROC] = limits.num_threads
    for kind, most in hard.items():
        resource.setrlimit(kind, (most, most))
    filter.install(os.getpid(), can_write=can_write)


def _keep_capabilities(kept: int) -> None:
    header = struct.pack("Ii", _CAPABILITIES_VERSION, 0)
    sets = struct.pack("IIIIII", kept, kept, 0, 0, 0, 0)
    libc.call("capset", ctypes.create_string_buffer(header), ctypes.create_string_buffer(sets))
