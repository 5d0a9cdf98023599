"""A process as its holder's file records it, and whether it still lives.

One of this machine lives while its process does; one of another machine while it renews its file's
time, which is compared with that of a file made just now, since clocks differ.
"""

import contextlib
import json
import os
import platform
import secrets
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

BEAT_S = 10.0  # a holder renews its file's time so often
SILENT_S = 300.0  # without a beat, a holder on another machine is dead
UNREADABLE_S = 2.5 * BEAT_S  # the same, of a file that says nothing


@dataclass(frozen=True)
class Holder:
    """A process that writes an output."""

    pid: int
    host: str
    machine: str  # the boot of a kernel and the namespace in which `pid` counts
    born: str  # tells the process from a later one of the same number
    since: str
    command: str
    ticket: str  # by which the stages of a run are let in

    @classmethod
    def here(cls) -> "Holder":
        """Return this process as a holder."""
        return cls(
            pid=os.getpid(),
            host=platform.node(),
            machine=machine(),
            born=born_at(os.getpid()) or "",
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            command=shlex.join(["fretsaw", *sys.argv[1:]]),
            ticket=secrets.token_hex(8),
        )

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}, since {self.since}: {self.command}"


@dataclass(frozen=True)
class Found:
    """A holder's file as it was read, and how long it had not been renewed."""

    content: bytes
    renewed_ns: int
    silent_s: float

    @property
    def holder(self) -> Holder | None:
        """Who it names, None where it says nothing that can be read."""
        try:
            values = json.loads(self.content)
            holder = Holder(**values)
        except (ValueError, TypeError, RecursionError):
            return None
        is_text = all(isinstance(value, str) for name, value in values.items() if name != "pid")
        return holder if is_text and type(holder.pid) is int and holder.pid > 0 else None

    @property
    def is_alive(self) -> bool:
        """Whether the holder's process goes on; of what can't be read, whether it is renewed."""
        holder = self.holder
        if holder is None:
            return self.silent_s < UNREADABLE_S
        if holder.machine == machine():
            return born_at(holder.pid) in ("", holder.born)
        return self.silent_s < SILENT_S


def machine() -> str:
    """Return where a process number counts: the host, its boot, and the namespace of processes."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # Linux alone has these
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def born_at(pid: int) -> str | None:
    """Return when a process began, "" where that is not told, None where there is none."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:  # another user's
        pass
    if not Path("/proc/self/stat").exists():
        told = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return told.stdout.strip()
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:  # hidden, or gone this moment
        return ""
    is_dead = state in (b"Z", b"X")  # ended, and its parent has not looked yet
    return None if is_dead else fields[18].decode()
