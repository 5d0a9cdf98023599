"""A load on a real server, and its figures by hand."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from scripted import Reply, scripted
from serving import CONTEXT, Remote, remote, write_toggled

from fretsaw.bench.load import Load, Seen, Server, measure_load, render_load, run_load, summarise
from fretsaw.cli import main
from fretsaw.client.openai import Client

LOAD = Load(clients=3, requests=7, prompt_tokens=6, output_tokens=5, vocab_size=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toggled") / "toggled"
    folder.mkdir()
    write_toggled(folder)
    return folder


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Remote]:
    with remote(folder, "--api-key", "sesame") as server:
        yield server


def test_every_request_is_answered_in_full(live: Remote) -> None:
    server = Server(live.url, api_key="sesame").named()
    assert server.model == "toggled"
    heard: list[int] = []
    seen = run_load(server, LOAD, heard.append)
    assert sorted(heard) == list(range(1, 8))
    assert [(one.tokens, one.fault) for one in seen] == [(5, "")] * 7
    assert all(one.sent < one.arrivals[0] <= one.ended for one in seen)
    found = summarise(seen)
    assert (found["requests"], found["failed"], found["tokens"]) == (7, 0, 35)
    assert found["tokens_per_s"] == pytest.approx(35 / found["seconds"])
    row = found["request_ms"]
    assert found["first_token_ms"]["p50"] <= row["p50"] <= row["p99"]


def test_prompts_are_the_seeds_alone(live: Remote) -> None:
    sent: list[list[int]] = []

    class Listening(Client):
        def stream(self, path, body):
            sent.append(body["prompt"])
            return super().stream(path, body)

    class Heard(Server):
        def client(self, max_concurrent=1):
            return Listening(self.url, api_key=self.api_key, max_concurrent=max_concurrent)

    server = Heard(live.url, "toggled", "sesame")
    for seed in (0, 0, 1):
        run_load(server, Load(**{**vars(LOAD), "clients": 1, "requests": 3, "seed": seed}))
    assert sent[:3] == sent[3:6]
    assert len({tuple(prompt) for prompt in sent}) == 6
    assert all(3 <= token_id < 200 for prompt in sent for token_id in prompt)


def test_what_a_server_refuses_is_told_in_its_words(live: Remote) -> None:
    long = Load(**{**vars(LOAD), "prompt_tokens": CONTEXT + 1})
    with pytest.raises(ValueError, match=rf"none of 7 requests was answered: 400: .*{CONTEXT}"):
        summarise(run_load(Server(live.url, "toggled", "sesame"), long))
    with pytest.raises(ValueError, match=r"refuses \(401\): .*API key"):
        Server(live.url).named()


def test_a_busy_server_is_asked_once_a_request() -> None:
    busy = Reply.of({"error": {"message": "busy"}}, 503, headers={"Retry-After": "0"})
    with scripted(lambda number, body: busy) as server:
        seen = run_load(Server(server.url).named(), LOAD)
    assert [one.fault for one in seen] == ["503: busy"] * 7
    assert len(server.posted) == 7
    assert server.most_at_once <= 3


def test_figures_by_hand() -> None:
    seen = [
        Seen(sent=0.0, arrivals=(0.1, 0.2, 0.4), tokens=3),
        Seen(sent=0.5, arrivals=(0.8,), tokens=2),
        Seen(sent=0.6, fault="500: oh"),
    ]
    found = summarise(seen)
    assert (found["requests"], found["failed"]) == (2, 1)
    assert found["seconds"] == pytest.approx(0.8)
    assert found["tokens_per_s"] == pytest.approx(5 / 0.8)
    assert found["first_token_ms"]["mean"] == pytest.approx(200)
    assert found["between_tokens_ms"]["p50"] == pytest.approx(150)
    assert found["request_ms"]["p99"] == pytest.approx(300 + 0.99 * 100)
    text = render_load("here", LOAD, found)
    assert "6.2 tokens/s" in text
    assert "1 requests failed, the first with 500: oh" in text


def test_a_checkpoint_is_served_meanwhile(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "load.json"
    command = ["bench", str(folder), "--scenario", "batch=2,in=8,out=4", "--out", str(out)]
    assert main([*command, "--requests", "4"]) == 0
    assert "4 requests, 2 at once, 8 tokens in, 4 out" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert (found["tokens"], len(found["each"])) == (16, 4)
    assert main([*command, "--requests", "4"]) == 2
    assert "already there" in capsys.readouterr().err


class NoServer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_servers_that_are_none(folder: Path) -> None:
    with pytest.raises(ValueError, match="does not answer"):
        measure_load(Server("http://127.0.0.1:9"), LOAD, warmup=0)
    with pytest.raises(ValueError, match="bench: 'http://' is no address; write http://HOST:PORT"):
        Server("http://").named()
    with HTTPServer(("127.0.0.1", 0), NoServer) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match="not what an OpenAI-compatible server says"):
            Server(f"http://127.0.0.1:{other.server_port}").named()
        other.shutdown()
    with pytest.raises(ValueError, match=f"the context is {CONTEXT}; lower them"):
        measure_load(Server(str(folder)), Load(**{**vars(LOAD), "output_tokens": 9999}), warmup=0)
    with pytest.raises(ValueError, match="every client sends one"):
        measure_load(Server(str(folder)), Load(**{**vars(LOAD), "requests": 2}), warmup=0)
