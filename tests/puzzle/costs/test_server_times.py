"""Models served and timed over HTTP: servers started for it, servers that run, and none at all."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import patient
from scripted import Reply, scripted

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.puzzle.costs.server_times import ServerTimes
from fretsaw.scenario.scenario import Scenario

CONFIG = ModelConfig.uniform(
    num_hidden_layers=2,
    num_key_value_heads=2,
    intermediate_size=16,
    vocab_size=10,
    hidden_size=8,
    num_attention_heads=2,
    head_dim=4,
)
MODELS = {"parent": CONFIG.blocks, "1 ffn8": (BlockConfig.from_names("gqa2", "ffn8"),) * 2}
SCENARIO = Scenario(batch=2, prompt_tokens=3, output_tokens=4, dtype="fp32", device="cpu")
SERVER = """
import http.server, json, pathlib, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({"data": [{"id": sys.argv[1]}]})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        layers = json.loads(pathlib.Path(sys.argv[1], "config.json").read_text())
        assert layers["num_hidden_layers"] == 2
        made = len(body["prompt"]) * body["max_tokens"]
        print(self.path, body["model"] == sys.argv[1], made, file=sys.stderr, flush=True)
        self.reply({"usage": {"completion_tokens": made}})
    def reply(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "parent"
    decoder = Decoder(CONFIG)
    decoder.init_weights(seed=0)
    checkpoint.save(decoder, folder)
    return folder


@pytest.fixture
def timed(parent: Path, tmp_path: Path) -> Callable[..., ServerTimes]:
    def make(url: str = "http://127.0.0.1:{port}", command: str = "", **more: Any) -> ServerTimes:
        options: dict[str, Any] = {
            "config": CONFIG,
            "models": MODELS,
            "deadline_s": patient(20),
            **more,
        }
        options.setdefault("check", lambda: None)
        return ServerTimes(
            folder=tmp_path / "models",
            parent=parent,
            scenario=SCENARIO,
            command=command,
            url=url,
            **options,
        )

    return make


def script(folder: Path, text: str) -> str:
    path = folder / "server.py"
    path.write_text(text)
    return f"{sys.executable} {path} {{model}} {{port}}"


def all_tokens(number: int, body: Any) -> Reply:
    return Reply.of({"usage": {"completion_tokens": len(body["prompt"]) * body["max_tokens"]}})


def time_at(engine: ServerTimes, *rounds: int, scenario: Scenario = SCENARIO) -> list[dict]:
    with engine.open("parent", CONFIG.blocks) as timed:
        return [timed(scenario, r) for r in rounds]


# --- a server of its own --------------------------------------------------------------------------


def test_every_model_is_served_in_turn_and_its_server_ends(
    timed: Callable[..., ServerTimes], tmp_path: Path
) -> None:
    engine = timed(command=script(tmp_path, SERVER))
    assert not engine.is_interleaved
    for name, blocks in MODELS.items():
        with engine.open(name, blocks) as time_once:
            times = time_once(SCENARIO, 0)
        assert set(times) == {"prefill_ms", "decode_ms"}
        assert min(times.values()) > 0
    written = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert written == ["00-parent.log", "01-1-ffn8.log"]
    log = (tmp_path / "models" / written[0]).read_text().splitlines()
    assert log == [f"/v1/completions True {2 * tokens}" for tokens in (2, 1, 4)]


def test_what_a_server_started_ends_with_it(
    timed: Callable[..., ServerTimes], tmp_path: Path
) -> None:
    number = tmp_path / "pid"
    child = (
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(number)!r}).write_text(str(child.pid))\n"
    )
    time_at(timed(command=script(tmp_path, child + SERVER)), 0)
    state = Path("/proc") / number.read_text() / "stat"
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_server_that_ends_is_told_with_its_last_words(
    timed: Callable[..., ServerTimes], tmp_path: Path
) -> None:
    words = "import sys\nfor i in range(9): print('line', i)\nsys.exit(3)"
    rule = r"--server-command: the server ended with 3: \nline 4\nline 5\nline 6\nline 7\nline 8$"
    with pytest.raises(ValueError, match=rule):
        time_at(timed(command=script(tmp_path, words)), 0)
    with pytest.raises(ValueError, match="the server ended with 0: it wrote nothing"):
        time_at(timed(command=script(tmp_path, "")), 0)
    with pytest.raises(ValueError, match=r"--server-command: nowhere is no program that can be"):
        time_at(timed(command="nowhere {model}"), 0)


def test_a_server_that_does_not_listen_is_told_with_its_last_words(
    timed: Callable[..., ServerTimes], tmp_path: Path
) -> None:
    silent = "import time\nprint('loading', flush=True)\ntime.sleep(600)"
    rule = (
        r"no answer within 1 s \(.*refused\); check the address and that the server runs, or raise "
        r"--server-deadline-s; it last wrote: \nloading$"
    )
    with pytest.raises(ValueError, match=rule):
        time_at(timed(command=script(tmp_path, silent), deadline_s=1.0), 0)


def test_a_stop_is_heard_while_a_server_is_awaited(
    timed: Callable[..., ServerTimes], tmp_path: Path
) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        time_at(timed(command=script(tmp_path, "import time; time.sleep(9)"), check=stop), 0)


# --- a server that runs ---------------------------------------------------------------------------


def test_the_whole_batch_is_one_request_and_new_in_every_round(
    timed: Callable[..., ServerTimes],
) -> None:
    with scripted(all_tokens) as server:
        engine = timed(server.url + "/{index}/v1")
        assert engine.is_interleaved
        time_at(engine, 0, 1)
    bodies = [one.body for one in server.posted]
    assert [body["max_tokens"] for body in bodies] == [2, 1, 4, 1, 4]  # one to warm it up
    assert all(one.path == "/0/v1/completions" for one in server.posted)
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in bodies)
    assert all([len(row) for row in body["prompt"]] == [3, 3] for body in bodies)
    assert len({str(body["prompt"]) for body in bodies}) == 5
    assert all(0 <= token < 10 for body in bodies for row in body["prompt"] for token in row)


def test_what_is_refused_is_told_and_not_asked_again(timed: Callable[..., ServerTimes]) -> None:
    busy = Reply.of({"error": {"message": "too busy"}}, 503, headers={"Retry-After": "0"})
    with (
        scripted(lambda number, body: busy) as server,
        pytest.raises(ValueError, match=r"completions: the server refused \(503\): .*too busy"),
    ):
        time_at(timed(server.url + "/{index}"), 0)
    assert len(server.posted) == 1


def test_fewer_tokens_than_asked_for_do_not_count(timed: Callable[..., ServerTimes]) -> None:
    answers = {"completion_tokens": 3}, {}
    for answer, made in zip(answers, ("3", "an unknown number of"), strict=True):
        rule = f"{made} tokens came where 4 were asked for, so its times do not count; use a server"
        with (
            scripted(lambda number, body, a=answer: Reply.of({"usage": a})) as server,
            pytest.raises(ValueError, match=rule),
        ):
            time_at(timed(server.url + "/{index}"), 0)


def test_what_is_no_such_server_is_told(timed: Callable[..., ServerTimes]) -> None:
    hello, empty = Reply((b"hello",)), Reply.of({"data": []})
    rules = "v1/models: what answers speaks no JSON; give a", "names no model at /v1/models; give a"
    for models, rule in zip((hello, empty), rules, strict=True):
        with scripted(all_tokens, models) as server, pytest.raises(ValueError, match=rule):
            time_at(timed(server.url + "/{index}"), 0)


def test_an_answer_too_late_is_none(timed: Callable[..., ServerTimes]) -> None:
    slow = Reply.of({}, pause_s=9.0)
    rule = r"no answer within 0.5 s \(.*timed out.*\); .* or raise --server-deadline-s$"
    with scripted(lambda n, b: slow) as server, pytest.raises(ValueError, match=rule):
        time_at(timed(server.url + "/{index}", deadline_s=0.5), 0)


# --- what is not understood -----------------------------------------------------------------------


def test_one_token_is_no_decoding(timed: Callable[..., ServerTimes]) -> None:
    one = Scenario(batch=2, prompt_tokens=3, output_tokens=1, dtype="fp32", device="cpu")
    with scripted(all_tokens) as server, pytest.raises(ValueError, match="give out=2 or more"):
        time_at(timed(server.url + "/{index}"), 0, scenario=one)


def test_options_that_are_not_understood(timed: Callable[..., ServerTimes]) -> None:
    with pytest.raises(ValueError, match=r"--server-url ftp://\{port\}: no address; write http"):
        timed("ftp://{port}")
    with pytest.raises(ValueError, match=r"--server-command 'vllm serve': names no \{model\}"):
        timed(command="vllm serve")
    with pytest.raises(ValueError, match=r"--server-url http://gpu: the same for all models"):
        timed("http://gpu")
    linear = {"linear": (BlockConfig.from_names("attn_linear", "ffn8"),) * 2}
    with pytest.raises(ValueError, match="vLLM loads no linear subblocks"):
        timed(models=linear)
