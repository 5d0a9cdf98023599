"""Servers that are started, awaited and ended."""

import socket
import sys
import time
from pathlib import Path

import pytest
from patience import patient

from fretsaw.client.openai import Fault
from fretsaw.client.server_process import ServerProcess, free_port, wait_until_listening

LISTENER = """
import socket, sys, time
print("up", flush=True)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(600)
"""


def test_a_server_listens_until_its_end(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    (tmp_path / "server.py").write_text(LISTENER)
    with ServerProcess(f"{sys.executable} {tmp_path}/server.py {port}", log, "--judge") as server:
        wait_until_listening(f"http://127.0.0.1:{port}", 20.0, server.check)
        server.check()
        assert server.last_words() == "\nup"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ValueError, match=r"--judge: the server ended with -15: \nup"):
        server.check()


def test_it_ends_with_an_error_too(tmp_path: Path) -> None:
    server = ServerProcess("sleep 600", tmp_path / "log", "--judge")
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), server:
        raise KeyboardInterrupt
    assert time.monotonic() - started < patient(5)
    with pytest.raises(ValueError, match="the server ended with -15: it wrote nothing"):
        server.check()


def test_nothing_that_listens_is_told(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    heard: list[int] = []
    rule = rf"{url}: nothing listens within 0.7 s \(.*refused\); check the address"
    with pytest.raises(Fault, match=rule) as error:
        wait_until_listening(url, 0.7, lambda: heard.append(1))
    assert error.value.status == 0
    assert len(heard) > 1


def test_who_waits_may_be_stopped() -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        wait_until_listening(f"http://127.0.0.1:{free_port()}", 20.0, stop)
