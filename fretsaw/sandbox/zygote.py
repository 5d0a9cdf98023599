"""The zygote: an interpreter that is ready, in the sandbox, and forks a process for every program.

It reads nothing of a job: files go from the host to the processes that need them. So a program
finds in its memory, a copy of this one, neither tests nor what other programs wrote.
"""

import dataclasses
import gc
import importlib
import json
import os
import select
import signal
import site
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from fretsaw.sandbox import landlock, libc, program, tester
from fretsaw.sandbox.confinement import confine, keep_only
from fretsaw.sandbox.limits import Limits
from fretsaw.sandbox.values import Line

_WORK = 3  # the file of a process that says what it does; its own others follow
LOST = 3  # the exit code of tests whose program is gone
# what programs import is here before they are forked
_READY = (
    *("bisect", "collections", "copy", "datetime", "functools", "heapq", "itertools", "math"),
    *("operator", "re", "statistics", "string", "typing"),
)
_NUM_PROCESSORS = os.cpu_count() or 1
_TICK_S = 0.01  # between looks at a clock
_ENDS_S = 1.0  # in which a program that is gone from its tests ends
_FILES = "/tmp"  # the folder that a program can write in
_MAX_FILES = 1000
_NOSUID_NODEV, _DETACH = 2 | 4, 2
_MAX_HEAPS = -8  # of mallopt


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the zygote stands."""

    backend: str
    user: int | None
    readable: tuple[str, ...]

    @property
    def can_write(self) -> bool:
        """Whether programs have a folder of their own."""
        return self.backend == "bubblewrap"


def main(place: Place) -> NoReturn:
    """Answer one job after the other; ends when the host is gone."""
    host = socket.socket(fileno=os.dup(0))
    nothing = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    if place.backend == "landlock":
        landlock.restrict(place.readable)
    libc.call("mallopt", _MAX_HEAPS, 1)  # one of its own would reserve each thread 64 MiB
    for name in _READY:
        importlib.import_module(name)
    site.setquit()
    gc.freeze()
    os.chdir("/")
    host.send(b"ready")
    while True:
        message, fds, _, _ = socket.recv_fds(host, 1 << 16, 8)
        if not message:
            os._exit(0)
        job = json.loads(message)
        limits = Limits(**job["limits"])
        if place.can_write:
            _mount_folder(limits.disk_mib)
        reply = _run(place, limits, fds, host)
        if place.can_write:
            libc.call("umount2", _FILES.encode(), _DETACH)  # with what the program left there
        for fd in fds:
            os.close(fd)
        host.send(json.dumps(reply).encode())


def _mount_folder(size_mib: int) -> None:
    """Have an empty folder of a limited size."""
    options = f"size={size_mib}m,nr_inodes={_MAX_FILES},mode=1777".encode()
    libc.call("mount", b"tmpfs", _FILES.encode(), b"tmpfs", _NOSUID_NODEV, options)


def _run(
    place: Place, limits: Limits, fds: Sequence[int], host: socket.socket
) -> dict[str, object]:
    """Run a program, with tests where there are any; return how their processes ended."""
    deadline = time.monotonic() + limits.wall_s
    stdin, output, errors, source, *of_tests = fds
    files = [stdin, output, errors, source]
    if not of_tests:
        leader = ran = _fork(place, limits, files, _run_program)
        tested = None
    else:
        tests, report = of_tests
        (asked, ask), (answered, answer) = os.pipe(), os.pipe()
        ran = _fork(place, limits, [*files, asked, answer], _serve_program)
        files = [stdin, output, errors, tests, answered, ask, report]
        leader = tested = _fork(place, limits, files, _run_tests)
        for fd in (asked, ask, answered, answer):
            os.close(fd)
    watched = [ran] if tested is None else [ran, tested]
    is_late = not _ended(leader, watched, limits, deadline, host)
    if is_late and tested is not None:  # the tests can say at which of them the program is ended
        os.kill(ran, signal.SIGKILL)
        _ended(tested, [], limits, time.monotonic() + _ENDS_S, host)
    reply: dict[str, object] = {"is_late": is_late}
    if tested is not None:
        reply["tests"] = status, _ = _end(tested)
        if os.waitstatus_to_exitcode(status) == LOST:
            _ended(ran, [], limits, time.monotonic() + _ENDS_S, host)
    reply["program"] = _end(ran)
    return reply


def _fork(place: Place, limits: Limits, files: Sequence[int], work: Callable[[], None]) -> int:
    """Return the id of a new process that has these files alone, and works under the limits."""
    pid = os.fork()
    if pid:
        return pid
    try:
        keep_only(files)
        if place.can_write:
            os.chdir(_FILES)
        confine(limits, user=place.user, can_write=place.can_write)
    except BaseException as error:
        sys.stderr.write(f"the sandbox: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    work()
    sys.exit()  # as an interpreter ends: threads are waited for, buffers written


def _run_program() -> None:
    program.run(_read(_WORK).decode())


def _serve_program() -> None:
    try:
        program.serve(_read(_WORK).decode(), Line(_WORK + 1, _WORK + 2))
    finally:
        os._exit(0)


def _run_tests() -> None:
    job = json.loads(_read(_WORK))
    finding = tester.run_tests(Line(_WORK + 1, _WORK + 2), **job)
    os.write(_WORK + 3, json.dumps(dataclasses.asdict(finding)).encode())
    os._exit(LOST if finding.is_lost else 0)


def _read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def _ended(
    pid: int, watched: Sequence[int], limits: Limits, deadline: float, host: socket.socket
) -> bool:
    """Return whether a process ends before a time, and before a watched one has used up its own.

    Ends all where the host is gone.
    """
    fd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.register(host, 0)
    found: dict[int, int] = {}
    while not found:
        left_s = deadline - time.monotonic()
        unused_s = [limits.cpu_s - _processor_s(one) for one in watched]
        if left_s <= 0 or min(unused_s, default=1.0) <= 0:
            break
        # none uses its time up faster than on every processor at once
        soonest_s = min([left_s, *(max(unused / _NUM_PROCESSORS, _TICK_S) for unused in unused_s)])
        found = dict(poller.poll(soonest_s * 1000))
    os.close(fd)
    if host.fileno() in found:
        os._exit(0)  # its children are told by the kernel
    return fd in found


def _processor_s(pid: int) -> float:
    """Return what a process has used of the processors, seconds (clock_getcpuclockid)."""
    return time.clock_gettime((~pid << 3) | 2)


def _end(pid: int) -> tuple[int, float]:
    """End a process where it has not ended; return its wait status and its seconds of processor."""
    os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime
