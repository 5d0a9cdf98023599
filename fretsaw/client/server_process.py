"""A server started by a command for as long as it is needed, and waiting until one listens."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from fretsaw.client.openai import Fault

LOG_LINES = 5
GRACE_S = 30.0


class ServerProcess:
    """A server started by a command, in a process group of its own that ends with it.

    What it writes goes to `log`. Raises ValueError where it cannot be run, or has ended by itself;
    `option` is how the command was given, for these.
    """

    def __init__(self, command: str, log: Path, option: str):
        self._command, self._log, self._option = command, log, option

    def __enter__(self) -> "ServerProcess":
        arguments = shlex.split(self._command)
        if shutil.which(arguments[0]) is None:
            raise ValueError(f"{self._option}: {arguments[0]} is no program that can be run")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        return self

    def __exit__(self, *error: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)

    def check(self) -> None:
        """Raise with the server's last lines where it has ended."""
        if self._process.poll() is not None:
            raise ValueError(
                f"{self._option}: the server ended with {self._process.returncode}: "
                f"{self.last_words()}"
            )

    def last_words(self) -> str:
        """Return the last lines of what the server wrote."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "\n".join(["", *lines[-LOG_LINES:]]) if lines else "it wrote nothing"


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_listening(url: str, deadline_s: float, check: Callable[[], None]) -> None:
    """Wait until something listens at an address; `check` is called meanwhile, and may raise.

    Raises `Fault` where nothing listens by the deadline.
    """
    address, deadline = urlsplit(url), time.monotonic() + deadline_s
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    while True:
        check()
        try:
            left_s = max(0.1, min(2.0, deadline - time.monotonic()))
            socket.create_connection((address.hostname or "", port), left_s).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise Fault(
                    f"{url}: nothing listens within {deadline_s:g} s ({error}); check the address "
                    "and that the server runs",
                    told=str(error),
                ) from error
        time.sleep(0.5)
