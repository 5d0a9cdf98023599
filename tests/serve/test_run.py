"""The real process: its greeting, clients that leave, a full queue, and how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from patience import patient
from serving import Remote, asking, remote

from fretsaw.cli import main
from fretsaw.serve import engine_process
from fretsaw.serve.engine_thread import MAX_RESTARTS

LONG = {"temperature": 1.0, "ignore_eos": True, "max_tokens": 180}


def metric(server: Remote, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name))


def eventually(server: Remote, name: str, value: float, *, within_s: float = 20) -> None:
    """Wait until a metric has a value."""
    deadline = time.monotonic() + patient(within_s)
    while metric(server, name) != value:
        assert time.monotonic() < deadline, f"{name} is {metric(server, name)}, not {value}"
        time.sleep(0.02)


def test_a_client_that_leaves_a_stream_frees_its_pages(live: Remote) -> None:
    before = metric(live, "fretsaw_disconnects_total")
    for number in range(3):
        body = asking(stream=True, n=2, **LONG)
        with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            for _ in zip(response.iter_lines(), range(8), strict=False):
                pass
        eventually(live, "fretsaw_disconnects_total", before + number + 1)
    eventually(live, "fretsaw_open_answers", 0)
    eventually(live, "fretsaw_pages_used", 0)


def test_a_client_that_does_not_wait_for_its_answer(live: Remote) -> None:
    before = metric(live, "fretsaw_disconnects_total")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{live.url}/v1/chat/completions", json=asking(n=64, **LONG), timeout=0.1)
    eventually(live, "fretsaw_disconnects_total", before + 1)
    eventually(live, "fretsaw_pages_used", 0)


def test_a_connection_that_breaks_within_its_body(live: Remote) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    for sent in (b"POST /v1/completions HTTP/1.1\r\n", b"\x16\x03\x01 no http\r\n\r\n"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"prompt": '
        )
    assert httpx.get(f"{live.url}/health").json() == {"status": "ok"}


def test_a_queue_that_is_full(toggled: Path) -> None:
    with remote(toggled, "--max-batch", "1", "--max-queue", "1") as server:
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=asking(stream=True, n=30, **LONG)) as response:
            lines = response.iter_lines()
            next(lines)
            refused = httpx.post(url, json=asking())
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
        eventually(server, "fretsaw_open_answers", 0)
        assert httpx.post(url, json=asking()).status_code == 200


def test_the_greeting_and_keys_from_the_command_line_and_the_environment(
    toggled: Path, monkeypatch
) -> None:
    monkeypatch.setenv("FRETSAW_API_KEY", "three")
    with remote(toggled, "--api-key", "one", "--api-key", "two", "--name", "tiny") as server:
        assert server.greeting.startswith(
            f"tiny on {server.url}  chats in the Llama-Nemotron format  toggle v1  KV"
        )
        url = f"{server.url}/v1/models"
        assert httpx.get(url).status_code == 401
        for key in ("one", "two", "three"):
            found = httpx.get(url, headers={"authorization": f"Bearer {key}"})
            assert found.json()["data"][0]["id"] == "tiny"


def test_a_signal_lets_what_runs_finish_and_refuses_the_rest(toggled: Path) -> None:
    with remote(toggled) as server:
        url = f"{server.url}/v1/chat/completions"
        with httpx.Client() as client, httpx.Client() as other:
            other.get(f"{server.url}/health")
            body = asking(stream=True, n=16, **LONG)
            with client.stream("POST", url, json=body) as response:
                lines = response.iter_lines()
                next(lines)
                server.process.terminate()
                time.sleep(0.2)
                refused = httpx.post(url, json=asking())
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "shutting_down"
                assert httpx.get(f"{server.url}/health").status_code == 503
                chunks = [line for line in lines if line]
        assert chunks[-1] == "data: [DONE]"
        reasons = [json.loads(c[6:])["choices"][0]["finish_reason"] for c in chunks[:-1]]
        assert reasons.count("length") == 16
        assert server.process.wait(timeout=patient(20)) == 0


def test_past_the_grace_what_runs_is_told(toggled: Path) -> None:
    with remote(toggled, "--grace-s", "0.1") as server:
        url = f"{server.url}/v1/chat/completions"
        found: list[httpx.Response] = []
        waiting = threading.Thread(
            target=lambda: found.append(
                httpx.post(url, json=asking(n=100, **LONG), timeout=patient(30))
            )
        )
        with httpx.stream("POST", url, json=asking(stream=True, n=100, **LONG)) as response:
            lines = response.iter_lines()
            next(lines)
            waiting.start()
            eventually(server, "fretsaw_open_answers", 200)
            server.process.terminate()
            told = [line for line in lines if line]
        waiting.join()
        assert json.loads(told[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert found[0].status_code == 503
        assert server.process.wait(timeout=patient(20)) == 0


def test_a_second_signal_does_not_wait(toggled: Path) -> None:
    with remote(toggled) as server:
        body = asking(stream=True, n=100, **LONG)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            server.process.send_signal(signal.SIGINT)
            told = [line for line in lines if line]
        assert json.loads(told[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert server.process.wait(timeout=patient(20)) == 0


def test_an_engine_that_dies_is_told_of_and_started_again(toggled: Path, capfd) -> None:
    with remote(toggled) as server:
        url = f"{server.url}/v1/chat/completions"
        expected = httpx.post(url, json=asking()).json()["choices"][0]["message"]
        card = httpx.get(f"{server.url}/v1/models").json()["data"][0]
        for number in range(MAX_RESTARTS):
            engine = engine_of(server)
            with httpx.stream("POST", url, json=asking(stream=True, n=50, **LONG)) as response:
                lines = response.iter_lines()
                next(lines)
                os.kill(engine, signal.SIGKILL)
                told = [line for line in lines if line]
            error = json.loads(told[-1].removeprefix("data: "))["error"]
            assert error["code"] == "engine_restarting"
            refused = httpx.post(url, json=asking())
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "engine_restarting"
            assert int(refused.headers["retry-after"]) > 0
            assert httpx.get(f"{server.url}/health").status_code == 503
            assert httpx.get(f"{server.url}/v1/models").json()["data"][0] == card
            eventually(server, "fretsaw_engine_restarts_total", number + 1, within_s=120)
            assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
            assert httpx.post(url, json=asking()).json()["choices"][0]["message"] == expected
            assert engine_of(server) != engine
            assert metric(server, 'fretsaw_resident_bytes{process="engine"}') > 0
        os.kill(engine_of(server), signal.SIGKILL)
        assert server.process.wait(timeout=patient(60)) == 1
    log = capfd.readouterr().err
    assert "serve: the engine is lost (EngineLost(\"the engine's process has ended with" in log
    assert f"was started again {MAX_RESTARTS} times; the reason stands above" in log


def test_a_signal_ends_a_server_whose_engine_starts_again(toggled: Path) -> None:
    with remote(toggled) as server:
        os.kill(engine_of(server), signal.SIGKILL)
        deadline = time.monotonic() + patient(20)
        while httpx.get(f"{server.url}/health").status_code == 200:  # also where nobody asks of it
            assert time.monotonic() < deadline, "nobody has noticed"
        server.process.terminate()
        assert server.process.wait(timeout=patient(60)) == 0


def test_a_server_that_ends_while_its_engine_loads_leaves_none_behind(toggled: Path) -> None:
    with remote(toggled) as server:
        first = engine_of(server)
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + patient(20)
        while first in (loading := engines_of(server)) or not loading:
            assert time.monotonic() < deadline, "no engine is started again"
        server.process.terminate()
        assert server.process.wait(timeout=patient(60)) == 0
        (engine,) = loading
        assert "Z" in state_of(engine)


def test_an_engine_that_cannot_load_is_one_sentence(
    toggled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    for raised, code, said in (
        ("PermissionError(13, 'Permission denied', 'w.bin')", 2, "w.bin: permission denied; give"),
        ("OSError(5, 'Input/output error', 'w.bin')", 2, "w.bin: input/output error; see to"),
        ("ValueError('no such thing')", 2, "no such thing"),
        ("KeyError('w')", 1, "the engine could not be started (the engine's process has ended wi"),
    ):
        body = "from fretsaw.serve import engine_process as e; import fretsaw.talk.loaded as l\n"
        body += f"def f(*a, **k): raise {raised}\nl.LoadedModel.from_checkpoint = f\n"
        (tmp_path / "broken.py").write_text(body + "def main(): e.main()\n")
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
        monkeypatch.setattr(engine_process, "__name__", "broken")
        if code == 1:
            with pytest.raises(SystemExit, match=re.escape(said)):
                main(["serve", str(toggled), "--port", "0"])
        else:
            assert main(["serve", str(toggled), "--port", "0"]) == code
        error = capfd.readouterr().err
        assert error.count("Traceback") == (code == 1)
        assert code == 1 or (said in error and len(error.splitlines()) == 1)


def engines_of(server: Remote) -> list[int]:
    """Return the ids of the processes that a server has started and that run."""
    threads = Path(f"/proc/{server.process.pid}/task").iterdir()
    ids = [int(id) for thread in threads for id in (thread / "children").read_text().split()]
    return [id for id in ids if "Z" not in state_of(id)]


def engine_of(server: Remote) -> int:
    """Return the id of the process that a server has started."""
    threads = Path(f"/proc/{server.process.pid}/task").iterdir()
    (id,) = (id for thread in threads for id in (thread / "children").read_text().split())
    return int(id)


def test_an_engine_ends_with_its_server(toggled: Path) -> None:
    with remote(toggled) as server:
        engine = engine_of(server)
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + patient(20)
        while Path(f"/proc/{engine}").exists() and "Z" not in state_of(engine):
            assert time.monotonic() < deadline, "the engine lives on alone"
            time.sleep(0.05)


def state_of(process: int) -> str:
    """Return the state of a process; one that is gone counts as a zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


def test_less_memory_is_a_shorter_context(toggled: Path) -> None:
    page_mib = 32 * 2 * 2 * 2 * 16 * 4 / 2**20  # tokens, layers, kinds, heads, width, bytes
    with remote(toggled, "--memory-mib", str(3 * page_mib), "--grace-s", "0") as server:
        card = httpx.get(f"{server.url}/v1/models").json()["data"][0]
        assert card["max_model_len"] == 96
        answer = httpx.post(
            f"{server.url}/v1/completions", json={"prompt": "Blue", "max_tokens": 96}
        )
        assert answer.json()["error"]["param"] == "max_tokens"
        body = asking(ignore_eos=True, n=2)
        usage = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()["usage"]
        assert usage["prompt_tokens"] + usage["completion_tokens"] // 2 == 96


def test_the_process_that_speaks_http_needs_no_torch() -> None:
    code = "import sys, fretsaw.serve.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_user_can_do_wrong(toggled: Path, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(toggled), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"127.0.0.1:{port} cannot be listened on" in error
    assert "--port" in error
    assert main(["serve", str(toggled), "--host", "no.such.host.invalid"]) == 2
    assert "no address to listen on" in capsys.readouterr().err
    assert main(["serve", str(toggled / "none"), "--port", "0"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["serve", str(toggled), "--port", "0", "--memory-mib", "0.001"]) == 2
    assert "a page of 32 tokens takes" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["serve", str(toggled), "--port", "0", "--max-n", "0"])
    assert "max_n 0" in capsys.readouterr().err
