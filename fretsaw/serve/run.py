"""A server from start to end: load, listen, answer, finish what runs, leave."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from fretsaw.checkpoint.hub import resolve
from fretsaw.serve.api import create_app
from fretsaw.serve.engine_process import EngineOptions, EngineProcess, EngineProcesses
from fretsaw.serve.engine_thread import EngineThread
from fretsaw.serve.model import ServedModel
from fretsaw.serve.service import Service
from fretsaw.serve.settings import Limits, check_origins
from fretsaw.serve.stepped import EngineLost


def serve(
    name_or_path: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    dtype: str = "auto",
    fp8: bool = False,
    cuda_graphs: bool = False,
    name: str | None = None,
    api_keys: Sequence[str] = (),
    allow_origins: Sequence[str] = (),
    max_batch: int = 64,
    memory_mib: float | None = None,
    grace_s: float = 30.0,
    limits: Limits | None = None,
    log: bool = False,
) -> None:
    """Serve a checkpoint until SIGINT or SIGTERM; a second signal does not wait.

    Raises SystemExit where the engine is lost again and again, or cannot be started again.
    """
    limits = limits or Limits()
    check_origins(allow_origins)
    # Listens before the weights are read: a taken port is told early.
    with contextlib.ExitStack() as open_ones:
        listener = open_ones.enter_context(listen(host, port))
        folder = resolve(name_or_path)
        options = EngineOptions(folder, device, dtype, max_batch, memory_mib, fp8, cuda_graphs)
        engines = open_ones.enter_context(contextlib.closing(EngineProcesses(options)))
        try:
            engine = engines.start()
        except EngineLost as error:
            raise SystemExit(
                f"fretsaw: serve: the engine could not be started ({error}); the reason stands "
                "above"
            ) from None
        processes = {"server": os.getpid(), "engine": engine.pid}

        def restart() -> EngineProcess:
            another = engines.start()
            processes["engine"] = another.pid
            return another

        model = ServedModel.of(folder, engine.capacity, name)
        worker = EngineThread(engine, max_open=max_batch + limits.max_queue, restart=restart)
        service = Service(model, worker, limits, processes=processes)
        config = uvicorn.Config(
            create_app(service, api_keys=api_keys, allow_origins=allow_origins),
            log_level="info" if log else "error",
            access_log=log,
            timeout_graceful_shutdown=5,
            server_header=False,
            lifespan="on",
            ws="none",
        )
        greeting = (
            f"{model.name} on {url(listener)}  {model.speaks}  "
            f"KV pages {engine.memory_mib:.1f} MiB for {engine.capacity} tokens"
        )
        asyncio.run(_run(uvicorn.Server(config), listener, worker, grace_s, greeting))


async def _run(
    server: uvicorn.Server,
    listener: socket.socket,
    worker: EngineThread,
    grace_s: float,
    greeting: str,
) -> None:
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not (server.started or running.done()):
        await asyncio.sleep(0.01)
    stopping = asyncio.Event()
    _on_signals(lambda: worker.hurry() if stopping.is_set() else stopping.set())
    print(greeting, flush=True)
    waiting = [asyncio.create_task(event.wait()) for event in (stopping, worker.has_failed)]
    await asyncio.wait((running, *waiting), return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    if worker.num_open:
        print(f"finishing {worker.num_open} answers, at most {grace_s:g} s", file=sys.stderr)
    await worker.close(grace_s)
    server.should_exit = True
    await running
    if worker.failure is not None and not stopping.is_set():
        raise SystemExit(
            f"fretsaw: the engine is lost ({worker.failure!r}) and was started again "
            f"{worker.num_restarts} times; the reason stands above, and the server ends"
        )


def _on_signals(act: Callable[[], None]) -> None:
    """Take both signals over from uvicorn, which would stop listening before answers are whole."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, act)


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; port 0 takes a free one."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, OverflowError) as error:
        raise ValueError(
            f"serve: {host}:{port} is no address to listen on ({error}); give another"
        ) from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise ValueError(
                f"serve: {host}:{port} cannot be listened on ({error.strerror}); give another "
                "--port (0 takes a free one), or another --host"
            ) from error
        raise
    listener.set_inheritable(True)
    return listener


def url(listener: socket.socket) -> str:
    """Return where a listener is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
