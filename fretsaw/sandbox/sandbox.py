"""A sandbox: a zygote on a leash, and what became of the programs that it ran.

Programs and tests go in as sealed files in memory, and what they wrote comes back in others. A
verdict comes by a file that only the tests' process ever holds: a program that prints one, exits,
or kills what it can, gives none.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fretsaw.sandbox.backend import Backend, choose_backend, zygote_command
from fretsaw.sandbox.limits import Limits

_START_S = 60.0  # until a zygote must be ready, on a busy machine
_GRACE_S = 30.0  # for a zygote to say what became of a job, after its limit
_MIB = 1 << 20
_WHOSE = {"program": "", "tests": "the tests: "}


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    fault: str  # "" where it ended by itself and well
    output: str  # what it wrote
    errors: str  # what it wrote to standard error


@dataclass(frozen=True)
class Verdict:
    """What became of tests: whether all passed, else the first that did not, and why."""

    passed: bool
    failed: int | None = None  # -1 is the set-up, None the program itself, or all tests together
    line: str = ""  # of that test
    fault: str = ""


class Sandbox:
    """Runs programs one after the other, each in a process forked from one zygote.

    It starts when it is first used and again after a zygote was lost, with one program's verdict.
    Several threads need one each.
    Raises ValueError where no backend works here (`choose_backend`).
    """

    def __init__(self, limits: Limits | None = None, backend: Backend | None = None):
        self.limits = limits or Limits()
        self.backend: Backend = backend or choose_backend()
        self._zygote: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, source: str, stdin: str = "") -> Ended:
        """Run a program as a script that reads `stdin`."""
        with contextlib.ExitStack() as files:
            output, errors = _file(files), _file(files)
            reply = self._ask([_file(files, stdin), output, errors, _file(files, source)])
            written, complaints = (_written(fd, self.limits.output_mib) for fd in (output, errors))
        fault = "the sandbox was lost" if reply is None else self._fault(reply, "program")
        if len(written) >= self.limits.output_mib * _MIB:
            fault = f"wrote {self.limits.output_mib} MiB, the most it may"
        return Ended(fault, _text(written), _text(complaints))

    def run_tests(
        self, source: str, tests: Sequence[str], *, setup: str = "", entry_point: str | None = None
    ) -> Verdict:
        """Run a program as a module, and tests of it, `setup` before them, in another process.

        `entry_point` is the function under test where it has the name of one of Python's own.
        """
        job = json.dumps({"setup": setup, "tests": list(tests), "entry_point": entry_point})
        with contextlib.ExitStack() as files:
            given = [_file(files), _file(files), _file(files), _file(files, source)]
            report = _file(files)
            reply = self._ask([*given, _file(files, job), report])
            text = _written(report, self.limits.output_mib)
        if reply is None:
            return Verdict(False, fault="the sandbox was lost")
        if not text:
            return Verdict(False, fault=self._fault(reply, "tests") or "the tests gave no verdict")
        found = json.loads(text)
        failed, line = found["failed"], found["line"]
        if found["is_lost"] or reply["program"][1] > self.limits.cpu_s:
            fault = self._fault(reply, "program") or "ended before its tests did"
            return Verdict(False, failed, line, fault)
        return Verdict(failed is None, failed, line, found["error"])

    def close(self) -> None:
        """End the zygote, and all that it has forked."""
        if self._channel is not None and self._zygote is not None:
            self._channel.close()
            try:
                self._zygote.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()
        self._channel = self._zygote = None

    def _ask(self, fds: Sequence[int]) -> dict[str, Any] | None:
        """Give the zygote a job; return how its processes ended, None where the zygote was lost."""
        channel = self._channel or self._start()
        message = json.dumps({"limits": dataclasses.asdict(self.limits)}).encode()
        channel.settimeout(self.limits.wall_s + _GRACE_S)
        try:
            socket.send_fds(channel, [message], fds)
            reply = channel.recv(1 << 16)
        except OSError:
            reply = b""
        if not reply:
            self.close()
            return None
        return json.loads(reply)

    def _start(self) -> socket.socket:
        self._channel, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as files:
            errors = _file(files)
            # the same order of sets in every run; the program's own environment is empty
            self._zygote = subprocess.Popen(
                zygote_command(self.backend),
                stdin=there.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={"PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
            there.close()
            self._channel.settimeout(_START_S)
            hello = self._channel.recv(16)
            channel = self._channel
            if hello != b"ready":
                self.close()
                said = _text(_written(errors, 1)).strip()
                raise ValueError(f"{self.backend}: the sandbox does not start here: {said}")
        return channel

    def _fault(self, reply: dict[str, Any], process: str) -> str:
        """Return what is wrong with how a process ended, "" where it is nothing."""
        limits = self.limits
        for whose in ("program", process):
            if reply[whose][1] > limits.cpu_s:
                return f"{_WHOSE[whose]}no end within {limits.cpu_s:g} s on the processor"
        if reply["is_late"]:
            return f"no end within {limits.wall_s:g} s by the clock"
        code = os.waitstatus_to_exitcode(reply[process][0])
        if code < 0:
            return f"{_WHOSE[process]}killed by {signal.Signals(-code).name}"
        return f"{_WHOSE[process]}exit code {code}" if code else ""


def _file(files: contextlib.ExitStack, text: str | None = None) -> int:
    """Return a file in memory: an empty one to write to, or one that holds a text for good."""
    fd = os.memfd_create("fretsaw", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    files.callback(os.close, fd)
    if text is not None:
        with open(fd, "wb", closefd=False) as file:
            file.write(text.encode(errors="surrogatepass"))
        os.lseek(fd, 0, os.SEEK_SET)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _written(fd: int, max_mib: int) -> bytes:
    return os.pread(fd, max_mib * _MIB, 0)


def _text(written: bytes) -> str:
    return written.decode(errors="replace")
