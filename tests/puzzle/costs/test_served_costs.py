"""Probe models behind servers: those started and ended, those that run already, those that fail."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from patience import patient
from support import stage_run

from fretsaw.puzzle.costs.cost import cost
from fretsaw.puzzle.settings import CostSettings, SpaceSettings
from fretsaw.stage.execute import Interrupted

# Speaks the protocol, and takes 1 ms a layer and token as the folder's config.json has layers.
SERVER = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
folder, port = Path(sys.argv[1]), int(sys.argv[2])
layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
class Handler(BaseHTTPRequestHandler):
    def answer(self, value):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())
    def do_GET(self):
        self.answer({"data": [{"id": "probe"}]})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "probe"
        time.sleep(1e-3 * layers * body["max_tokens"])
        made = len(body["prompt"]) * body["max_tokens"] - (sys.argv[3:] == ["short"])
        self.answer({"choices": [], "usage": {"completion_tokens": made}})
    def log_message(self, *arguments):
        pass
print("listening", flush=True)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
SETTINGS = CostSettings(
    space=SpaceSettings(kv_heads=(1,), ffn_percents=(50,), linear=False),
    engine="vllm",
    scenario="batch=2,in=4,out=11,dtype=fp32,device=cpu",
    rounds=2,
    layers=1,
    probes=1,
)


def command(tmp_path: Path, *options: str) -> str:
    (tmp_path / "server.py").write_text(SERVER)
    return " ".join([sys.executable, f"{tmp_path}/server.py", "{model}", "{port}", *options])


def test_servers_are_started_timed_and_ended(tiny: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, server_command=command(tmp_path))
    cost(settings, {"parent": tiny / "parent"}, stage_run(tmp_path / "out"))
    costs = json.loads((tmp_path / "out/costs.json").read_text())
    assert costs["engine"] == "vllm"
    # 4 layers take 4 ms for the prefill's token and 40 for 10 more, which are scaled to 11.
    parent = costs["parent"]
    assert parent["prefill_ms"] >= 4
    assert parent["prefill_ms"] + parent["decode_ms"] * 10 / 11 >= 44
    assert set(costs["alternatives"]) >= {"gqa4", "gqa1", "attn_none", "ffn64", "ffn32"}
    assert costs["left_out_error"]["decode_ms"].keys() == {"child 0"}
    assert not list((tmp_path / "out").rglob("config.json"))  # no folder is left


def test_what_is_served_already_is_named_and_awaited(tiny: Path, tmp_path: Path, capsys) -> None:
    settings = replace(SETTINGS, server_url="http://127.0.0.1:9/{index}", server_deadline_s=0.5)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9/0: no answer within 0.5 s"):
        cost(settings, {"parent": tiny / "parent"}, stage_run(tmp_path))
    assert time.monotonic() - started < patient(20)
    told = capsys.readouterr()
    assert "is expected at http://127.0.0.1:9/1" in told.out + told.err
    assert len(list(tmp_path.rglob("config.json"))) == 8  # 6 stacks, the parent, a child


def test_a_server_that_ends_gives_its_last_lines(tiny: Path, tmp_path: Path) -> None:
    code = "import sys; print('loading {model}'); sys.exit('unknown flag --fast')"
    settings = replace(SETTINGS, server_command=f'{sys.executable} -c "{code}"')
    with pytest.raises(ValueError, match=r"(?s)ended with 1: .*loading .*unknown flag --fast"):
        cost(settings, {"parent": tiny / "parent"}, stage_run(tmp_path))


def test_times_of_answers_that_ended_early_do_not_count(tiny: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, server_command=command(tmp_path, "short"))
    with pytest.raises(ValueError, match="3 tokens came where 4 were asked for"):
        cost(settings, {"parent": tiny / "parent"}, stage_run(tmp_path / "out"))


@pytest.mark.parametrize(
    ("says", "complaint"),
    [
        ("SSH-2.0-OpenSSH_9.2\\r\\n", "speaks no JSON"),
        ("HTTP/1.1 200 OK\\r\\nContent-Length: 99\\r\\n\\r\\n{", "no answer within"),
        ("HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n[]", "names no model"),
        ('HTTP/1.1 200 OK\\r\\nContent-Length: 14\\r\\n\\r\\n{"data": [{}]}', "names no model"),
    ],
)
def test_what_answers_otherwise(tiny: Path, tmp_path: Path, says: str, complaint: str) -> None:
    (tmp_path / "server.py").write_text(
        "import socket, sys\n"
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[2])))\n"
        "while True:\n"
        "    caller, _ = listener.accept()\n"
        "    if caller.recv(65536):\n"
        f"        caller.sendall(b'{says}')\n"
        "    caller.close()\n"
    )
    run = f"{sys.executable} {tmp_path}/server.py {{model}} {{port}}"
    settings = replace(SETTINGS, server_command=run, server_deadline_s=patient(5))
    with pytest.raises(ValueError, match=complaint):
        cost(settings, {"parent": tiny / "parent"}, stage_run(tmp_path / "out"))


def test_a_stop_ends_the_waiting(tiny: Path, tmp_path: Path) -> None:
    code = "import time; time.sleep(6000) # {model}"
    settings = replace(SETTINGS, server_command=f'{sys.executable} -c "{code}"')
    run = stage_run(tmp_path)
    run.stop_requested = True
    started = time.monotonic()
    with pytest.raises(Interrupted):
        cost(settings, {"parent": tiny / "parent"}, run)
    assert time.monotonic() - started < patient(30)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"space": SpaceSettings()}, "vLLM loads no linear subblocks.*--linear False"),
        ({"server_command": "vllm serve"}, "names no {model}"),
        ({"server_command": "no-such-program {model}"}, "no program that can be run"),
        ({"server_url": "http://127.0.0.1:8000"}, "the same for all models"),
        ({"server_url": "localhost:{port}"}, "no address"),
        ({"scenario": "batch=1,in=4,out=1"}, "out=1 decodes nothing"),
    ],
)
def test_what_is_refused(tiny: Path, tmp_path: Path, changes: dict, complaint: str) -> None:
    settings = replace(SETTINGS, **{"server_command": command(tmp_path), **changes})
    if "server_url" in changes:
        settings = replace(settings, server_command="")
    with pytest.raises(ValueError, match=complaint):
        cost(settings, {"parent": tiny / "parent"}, stage_run(tmp_path / "out"))
