"""An engine in a process of its own, called over a socket as if it were here.

Python lets one thread of a process run at a time. HTTP and the engine's own Python would take
turns, and both would be slower than either alone; in two processes they are not. It also means that
the server lives to tell of it when the engine dies.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fretsaw.engine.sequence import Event, Request
from fretsaw.engine.stats import Stats
from fretsaw.serve.stepped import EngineLost
from fretsaw.stage.file_errors import sentence_of


@dataclass(frozen=True)
class EngineOptions:
    """What the process is started with."""

    folder: Path
    device: str
    dtype: str
    max_batch: int
    memory_mib: float | None
    fp8: bool
    cuda_graphs: bool


@dataclass(frozen=True)
class Reply:
    """What a call returned, and how the engine stands after it."""

    value: Any
    stats: Stats
    has_work: bool


@dataclass(frozen=True)
class Ready:
    """What the process says once the weights are there."""

    reply: Reply
    capacity: int  # tokens of key-value memory
    memory_mib: float  # of it


class EngineProcess:
    """The engine as the server's thread calls it; every call waits for its reply."""

    def __init__(self, options: EngineOptions):
        """Start the process; it can be used once `wait_until_ready` has returned."""
        self._options, self._is_ready = options, False
        self._closing = threading.Lock()  # one thread may close it while another waits for it
        ours, theirs = socket.socketpair()
        # Not -m: what is sent must be of this module, not of one called __main__.
        code = f"from {__name__} import main; main()"
        command = [sys.executable, "-c", code, str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self._connection = Connection(ours.detach())
        self.pid = self._process.pid

    def wait_until_ready(self) -> None:
        """Return once the weights are there.

        Raises ValueError for a checkpoint or options that cannot be used, `EngineLost` where the
        process ends.
        """
        try:
            ready = self._exchange(self._options)
        except BaseException:
            self.close()
            raise
        assert isinstance(ready, Ready), "the process greets once"
        self._last, self._is_ready = ready.reply, True
        self.capacity, self.memory_mib = ready.capacity, ready.memory_mib

    def add(self, request: Request) -> int:
        """Queue a request and return its id; raise ValueError if it could never run."""
        return self._call("add", request)

    def abort(self, request: int) -> None:
        """Drop a request wherever it is; one that has ended is ignored."""
        self._call("abort", request)

    def force(self, request: int, token_ids: Sequence[int]) -> None:
        """Append tokens to a request as if it had generated them."""
        self._call("force", request, token_ids)

    def step(self) -> list[Event]:
        """Compute what is scheduled next; return the tokens that came of it."""
        return self._call("step")

    def stats(self) -> Stats:
        """Return counts so far, as of the last call."""
        return self._last.stats

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running; raises `EngineLost` once the process ended."""
        if self._process.poll() is not None:
            raise EngineLost(f"the engine's process has ended with code {self._process.returncode}")
        return self._last.has_work

    def close(self) -> None:
        """End the process; one that still loads listens to nobody, so it is killed."""
        with self._closing:
            if not self._is_ready:
                self._process.kill()
                self._process.wait()
            self._connection.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:  # in the middle of a long step
                self._process.kill()
                self._process.wait()

    def _call(self, name: str, *arguments: Any) -> Any:
        self._last = self._exchange((name, *arguments))
        return self._last.value

    def _exchange(self, message: object) -> Any:
        try:
            self._connection.send(message)
            reply = self._connection.recv()
        except (EOFError, OSError) as error:
            self.close()
            code = self._process.returncode
            raise EngineLost(f"the engine's process has ended with code {code}") from error
        if isinstance(reply, Exception):
            raise reply
        return reply


class EngineProcesses:
    """Starts the engine's process, and others in its place; closed, it leaves none behind.

    One thread starts while another may close.
    """

    def __init__(self, options: EngineOptions):
        self._options = options
        self._lock = threading.Lock()
        self._latest: EngineProcess | None = None
        self._is_closed = False

    def start(self) -> EngineProcess:
        """End the process there is and return another, with as much memory for keys and values.

        Raises what `wait_until_ready` does.
        """
        with self._lock:
            if self._latest is not None:
                self._latest.close()
            if self._is_closed:
                raise EngineLost("the server has ended")
            engine = self._latest = EngineProcess(self._options)  # known before it has loaded
        engine.wait_until_ready()
        self._options = replace(self._options, memory_mib=engine.memory_mib)
        return engine

    @property
    def pid(self) -> int:
        """The id of the process there is."""
        assert self._latest is not None, "start() comes first"
        return self._latest.pid

    def close(self) -> None:
        """End the process there is, though it may still load."""
        with self._lock:
            self._is_closed = True
            if self._latest is not None:
                self._latest.close()


def main() -> None:
    """Run the engine; what `EngineProcess` starts."""
    # The server decides when to end: a signal to all processes of a terminal is its business.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    try:
        _answer(connection, _load(connection, connection.recv()))
    except (EOFError, ConnectionError):  # the server has ended
        return


def _load(connection: Connection, options: EngineOptions) -> Any:
    from fretsaw.engine.engine import PAGE_SIZE, Engine
    from fretsaw.engine.page_memory import page_bytes
    from fretsaw.talk.loaded import LoadedModel

    try:
        loaded = LoadedModel.from_checkpoint(
            options.folder, device=options.device, dtype=options.dtype
        )
        engine = Engine(
            loaded.decoder,
            max_batch=options.max_batch,
            memory_mib=options.memory_mib,
            cuda_graphs=options.cuda_graphs,
            fp8=options.fp8,
        )
    except BaseException as error:  # torch's errors of checkpoints are no Exceptions
        told = sentence_of(error) or (str(error) if isinstance(error, ValueError) else None)
        if told is None:
            traceback.print_exc()
            os._exit(1)
        connection.send(ValueError(told))
        raise EOFError from error
    num_pages = engine.stats().pages_total
    mib = num_pages * page_bytes(loaded.decoder, PAGE_SIZE) / 2**20
    connection.send(Ready(_reply(engine, None), num_pages * PAGE_SIZE, mib))
    return engine


def _answer(connection: Connection, engine: Any) -> None:
    while True:
        name, *arguments = connection.recv()
        try:
            value = getattr(engine, name)(*arguments)
        except ValueError as error:
            connection.send(error)
        except Exception as error:
            traceback.print_exc()
            if name not in ("add", "force"):  # the engine is lost; the server reads the line's end
                os._exit(1)
            connection.send(RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            connection.send(_reply(engine, value))


def _reply(engine: Any, value: Any) -> Reply:
    return Reply(value, engine.stats(), engine.has_work)
