"""The client against servers that misbehave, each in its own way."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from patience import patient
from scripted import Reply, Scripted, scripted

from fretsaw.client.openai import Client, Fault

PATH = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "Grüße"}], "seed": 1}
GOOD = {"choices": [{"text": "ja"}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def busy(status: int = 503, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply.of({"error": {"message": "too busy"}}, status, headers=named)


def answering(*replies: Reply) -> Any:
    """Give one reply after another, and the last for ever."""
    return lambda number, body: replies[min(number, len(replies) - 1)]


def waits(server: Scripted) -> list[float]:
    times = [one.at for one in server.posted]
    return [b - a for a, b in pairwise(times)]


# --- tries ----------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    replies = busy(Retry_After="0.1"), busy(429, Retry_After="0.2"), Reply.of(GOOD)
    with scripted(answering(*replies)) as server:
        assert Client(server.url, may_repeat=True).call(PATH, ASK) == GOOD
    first, second = waits(server)
    assert 0.1 <= first < 0.5  # what it would wait by itself
    assert 0.2 <= second < 1.0


def test_a_server_may_name_a_date() -> None:
    date = formatdate(time.time() + 2, usegmt=True)  # whole seconds
    with scripted(answering(busy(Retry_After=date), Reply.of(GOOD))) as server:
        Client(server.url, may_repeat=True).call(PATH, ASK)
    assert 0.9 < waits(server)[0] < 2.5


def test_waits_double_where_none_is_named() -> None:
    no_date = busy(Retry_After="soon")
    with scripted(answering(busy(), no_date, Reply.of(GOOD))) as server:
        Client(server.url, may_repeat=True).call(PATH, ASK)
    first, second = waits(server)
    assert 0.5 <= first < 1.0 <= second < 2.0


def test_a_request_is_sent_once_unless_it_may_be_repeated() -> None:
    for reply in (busy(Retry_After="0"), Reply((b"{",), is_cut=True)):
        with scripted(answering(reply)) as server:
            client = Client(server.url)
            with pytest.raises(Fault):
                client.call(PATH, ASK)
            with pytest.raises(Fault):
                list(client.stream(PATH, ASK))
        assert len(server.posted) == client.spend.tries == 2


def test_the_deadline_covers_all_tries() -> None:
    with scripted(answering(busy(429))) as server:
        started = time.monotonic()
        client = Client(server.url, may_repeat=True, deadline_s=2.0)
        with pytest.raises(Fault, match=rf"{PATH}: the server refused \(429\): too busy") as e:
            client.call(PATH, ASK)
    assert time.monotonic() - started < patient(2.5)
    assert len(server.posted) == 3  # at 0, 0.5 and 1.5 s
    assert (e.value.status, e.value.told) == (429, "too busy")
    with scripted(answering(busy(Retry_After="60"))) as server, pytest.raises(Fault):
        Client(server.url, may_repeat=True, deadline_s=2.0).call(PATH, ASK)
    assert len(server.posted) == 1  # by then it would be too late


@pytest.mark.parametrize("pieces", [1, 40])
def test_an_answer_beyond_the_deadline_is_none(pieces: int) -> None:
    slow = Reply((b" ",) * pieces, pause_s=3.0 / pieces)  # silent, or a byte now and then
    with scripted(answering(slow)) as server:
        started = time.monotonic()
        with pytest.raises(Fault, match=r"no answer \(.*timed out.*\); check the address") as e:
            Client(server.url, may_repeat=True, deadline_s=0.6).call(PATH, ASK)
        assert time.monotonic() - started < patient(1.5)
    assert e.value.status == 0
    assert len(server.posted) == 1


def test_half_an_answer_is_none() -> None:
    half = Reply((json.dumps(GOOD).encode()[:20],), is_cut=True)
    rule = r"no answer \(.*closed connection.*\); check"
    with scripted(answering(half)) as server, pytest.raises(Fault, match=rule) as e:
        Client(server.url).call(PATH, ASK)
    assert e.value.status == 0


def test_half_an_answer_is_asked_for_again() -> None:
    half = Reply((json.dumps(GOOD).encode()[:20],), is_cut=True)
    with scripted(answering(half, Reply.of(GOOD))) as server:
        assert Client(server.url, may_repeat=True).call(PATH, ASK) == GOOD
    assert len(server.posted) == 2


def test_what_is_no_json_is_told() -> None:
    for text in (b"<html>hello</html>", b"\xff", b""):
        with scripted(answering(Reply((text,)))) as server:
            client = Client(server.url, may_repeat=True)
            with pytest.raises(Fault, match=f"{PATH}: what answers speaks no JSON; give") as e:
                client.call(PATH, ASK)
        assert e.value.status == 200
        assert len(server.posted) == 1


def test_an_error_that_looks_like_an_answer_is_none(tmp_path: Path) -> None:
    failed = Reply.of({"error": {"message": "no provider"}})
    with scripted(answering(failed, Reply.of({**GOOD, "error": None}))) as server:
        client = Client(server.url, cache=tmp_path)
        with pytest.raises(Fault, match=f"{PATH}: the server failed: no provider") as e:
            client.call(PATH, ASK)
        assert client.call(PATH, ASK)["choices"] == GOOD["choices"]
    assert e.value.status == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"error": {"message": "no such model"}}', "no such model"),
        (b'{"detail": "no"}', '{"detail": "no"}'),
        (b" gone \xff\n", "gone \ufffd"),
        (b"", "it says nothing"),
        (b'{"error": {"message": ""}}', "it says nothing"),
        (b"x" * 900, "x" * 500),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(body: bytes, told: str) -> None:
    with scripted(answering(Reply((body,), 404))) as server, pytest.raises(Fault) as error:
        Client(server.url, may_repeat=True).call(PATH, ASK)
    assert isinstance(error.value, ValueError)
    assert str(error.value) == f"{server.url}{PATH}: the server refused (404): {told}"
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.status, again.told) == (str(error.value), 404, told)


# --- what is asked, and where ---------------------------------------------------------------------


def test_the_key_the_body_and_the_path_arrive() -> None:
    with scripted(answering(Reply.of(GOOD))) as server:
        Client(f"{server.url}/v1/", api_key="sesame").call(PATH, ASK)
        Client(server.url).call(PATH, ASK)
    first, second = server.asked
    assert (first.path, first.body) == (PATH, ASK)
    assert first.headers["authorization"] == "Bearer sesame"
    assert "authorization" not in second.headers


def test_the_first_model_is_named() -> None:
    two = Reply.of({"data": [{"id": "one"}, {"id": "two"}]})
    with scripted(answering(), two) as server:
        assert Client(server.url).first_model() == "one"
    none = Reply.of({"data": []})
    with (
        scripted(answering(), none) as server,
        pytest.raises(ValueError, match="names no model at /v1/models; give an OpenAI"),
    ):
        Client(server.url).first_model()


def test_an_address_that_is_none_is_told_at_once() -> None:
    for url in ("here", "ftp://here", "http://", "http://here:port"):
        with pytest.raises(ValueError, match=f"'{url}' is no address; write http://HOST:PORT"):
            Client(url)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"127.0.0.1:9/v1/models: no answer"):
        Client("http://127.0.0.1:9", may_repeat=True).first_model()
    assert time.monotonic() - started < patient(5)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_no_proxy_leads_to_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with scripted(answering(Reply.of(GOOD))) as server:
        client = Client(server.url.replace("127.0.0.1", host))
        assert client.call(PATH, ASK) == GOOD


def test_a_proxy_leads_to_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(answering(Reply.of(GOOD))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert Client("http://example.invalid").call(PATH, ASK) == GOOD
    assert proxy.posted[0].path == f"http://example.invalid{PATH}"


# --- many -----------------------------------------------------------------------------------------


def test_no_more_are_under_way_than_allowed() -> None:
    def echo(number: int, body: Any) -> Reply:
        time.sleep(0.05)
        return Reply.of({"choices": body["number"]})

    with scripted(echo) as server:
        client = Client(server.url, max_concurrent=3)
        bodies = [{"number": number} for number in range(12)]
        found: dict[int, Any] = {}
        callers = [
            threading.Thread(target=lambda: found.update(client.call_all(PATH, bodies)))
            for _ in range(2)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert found == {number: {"choices": number} for number in range(12)}
    assert server.most_at_once == 3
    assert client.spend.requests == len(server.posted) == 24


def test_the_first_fault_ends_them_all() -> None:
    with scripted(answering(Reply.of(GOOD), busy())) as server:
        client = Client(server.url, max_concurrent=1)
        with pytest.raises(Fault, match="too busy"):
            list(client.call_all(PATH, [ASK] * 50))
    assert 2 <= len(server.posted) < 50
    assert list(client.call_all(PATH, [])) == []


def test_spend_adds_up() -> None:
    partly = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": None}}
    replies = [busy(Retry_After="0.05"), Reply.of(GOOD), Reply.of(partly), Reply.of({}), busy(400)]
    replies.append(Reply((b'data: {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n',)))
    with scripted(answering(*replies)) as server:
        client = Client(server.url, may_repeat=True, prices=(2.0, 10.0))
        for _ in range(3):
            client.call(PATH, ASK)
        with pytest.raises(Fault):
            client.call(PATH, ASK)
        assert len(list(client.stream(PATH, ASK))) == 1
    spend = client.spend
    assert (spend.requests, spend.cached, spend.tries) == (5, 0, 6)
    assert (spend.prompt_tokens, spend.completion_tokens) == (7 + 5 + 1, 3 + 1)
    assert spend.money == pytest.approx((13 * 2 + 4 * 10) / 1e6)


# --- kept answers ---------------------------------------------------------------------------------


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    with scripted(lambda number, body: Reply.of({"number": number, "text": "ü\u2028"})) as server:
        first = Client(server.url, cache=tmp_path / "kept").call(PATH, ASK)
        reordered = dict(reversed(ASK.items()))
        with scripted(answering(busy())) as other:  # where it was asked makes no difference
            client = Client(other.url, cache=tmp_path / "kept")
            assert client.call(PATH, reordered) == first == {"number": 0, "text": "ü\u2028"}
            assert client.spend.requests == client.spend.cached == 1
            assert (client.spend.tries, client.spend.money, other.asked) == (0, 0.0, [])
        client = Client(server.url, cache=tmp_path / "kept")
        assert client.call(PATH, {**ASK, "seed": 2})["number"] == 1
        assert client.call("/v1/completions", ASK)["number"] == 2
        assert Client(server.url).call(PATH, ASK)["number"] == 3
        assert client.first_model() == client.first_model() == "scripted"
    assert len(server.asked) == 6  # the models are asked for anew
    assert len(list((tmp_path / "kept").rglob("*.json"))) == 3


def test_a_refusal_is_not_kept(tmp_path: Path) -> None:
    with scripted(answering(busy(), Reply.of(GOOD))) as server:
        client = Client(server.url, cache=tmp_path / "kept")
        with pytest.raises(Fault):
            client.call(PATH, ASK)
        assert client.call(PATH, ASK) == GOOD


def test_equal_requests_side_by_side_are_kept_once(tmp_path: Path) -> None:
    with scripted(answering(Reply.of(GOOD, pause_s=0.05))) as server:
        client = Client(server.url, cache=tmp_path, max_concurrent=8)
        assert [answer for _, answer in client.call_all(PATH, [ASK] * 16)] == [GOOD] * 16
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".json"]


# --- streams --------------------------------------------------------------------------------------

EVENTS = [{"choices": [{"text": text}]} for text in ("Grüße", "a\u2028b\x85c", "日本", "")]
STREAM = (
    b": a comment\r\n\r\nevent: message\r\n"
    + b"".join(
        b"data: " + json.dumps(event, ensure_ascii=False).encode() + end
        for event, end in zip(EVENTS, (b"\n\n", b"\r\n\r\n", b"\n\n", b"\n\n"), strict=True)
    )
    + b'data:{"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 4}}\n\n'
    + b"data: [DONE]\n\n: the end"
)


def split(text: bytes, *places: int) -> tuple[bytes, ...]:
    ends = (*places, len(text))
    return tuple(text[a:b] for a, b in zip((0, *places), ends, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, len(STREAM)])
def test_events_are_whole_however_they_are_cut(size: int) -> None:
    pieces = split(STREAM, *range(size, len(STREAM), size))
    with scripted(answering(Reply(pieces, pause_s=2e-4))) as server:
        client = Client(server.url)
        events = [event for _, event in client.stream(PATH, ASK)]
    assert events[:-1] == EVENTS
    assert events[-1]["usage"]["completion_tokens"] == client.spend.completion_tokens == 4


def test_an_event_has_the_time_at_which_it_came() -> None:
    lines = tuple(b'data: {"choices": []}\n\n' for _ in range(4))
    with scripted(answering(Reply(lines, pause_s=0.1))) as server:
        events: list[tuple[float, Any]] = []
        for one in Client(server.url).stream(PATH, ASK):
            events.append(one)
            time.sleep(0.02)  # who reads slowly does not change when they came
        times = [at for at, _ in events]
    assert min(b - a for a, b in pairwise(times)) > 0.04
    assert 0.29 < times[-1] - times[0] < 0.8


def test_a_last_line_without_an_end_counts() -> None:
    with scripted(answering(Reply((b'data: {"choices": [1]}',)))) as server:
        assert [event for _, event in Client(server.url).stream(PATH, ASK)] == [{"choices": [1]}]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply((b'data: {"error": {"message": "out of memory"}}\n\n',)), "server failed: out of m"),
        (Reply((b"data: {half\n\n",)), "speaks no JSON"),
        (Reply((b'data: {"a": 1}\n\n',), is_cut=True), r"no answer \(.*closed connection"),
        (Reply((b"data: 1", b"\n"), pause_s=2.0), r"no answer \(.*timed out"),
        (busy(), r"the server refused \(503\): too busy"),
    ],
)
def test_a_stream_that_breaks_is_told(reply: Reply, told: str) -> None:
    with scripted(answering(reply)) as server:
        client = Client(server.url, may_repeat=True, deadline_s=0.5)
        with pytest.raises(Fault, match=told):
            list(client.stream(PATH, ASK))
    assert len(server.posted) == 1


def test_a_stream_may_outlast_its_deadline_but_not_be_silent_for_it() -> None:
    lines = tuple(b'data: {"choices": []}\n\n' for _ in range(6))
    with scripted(answering(Reply(lines, pause_s=0.2))) as server:
        assert len(list(Client(server.url, deadline_s=0.6).stream(PATH, ASK))) == 6


def test_who_leaves_a_stream_makes_room() -> None:
    endless = Reply(tuple(b'data: {"choices": []}\n\n' for _ in range(100)), pause_s=0.02)
    with scripted(answering(endless, Reply.of(GOOD))) as server:
        client = Client(server.url, max_concurrent=1)
        stream: Iterator[Any] = client.stream(PATH, ASK)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert client.call(PATH, ASK) == GOOD


# --- by itself ------------------------------------------------------------------------------------


def test_it_needs_no_torch() -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        "import fretsaw.client.openai, fretsaw.client.server_process\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
