"""A model behind a server is scored as the same model in process, answer for answer."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import Reply, scripted
from serving import LESSONS, Remote, remote, write_toggled
from support import stage_run

from fretsaw.chat.message import Message
from fretsaw.eval.compare import differences
from fretsaw.eval.evaluate import evaluate
from fretsaw.eval.served import text_of_answer, told
from fretsaw.eval.settings import EvalSettings
from fretsaw.rollout.rows import read_rows
from fretsaw.stage.execute import Interrupted

SETTINGS = EvalSettings(max_new_tokens=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    folder.mkdir()
    write_toggled(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Remote]:
    with remote(folder) as running:
        yield running


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "lessons.jsonl"
    rows = [{"prompt": question, "answer": "5", "id": str(i)} for i, question in enumerate(LESSONS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_answers_are_those_of_the_checkpoint(
    folder: Path, server: Remote, problems: Path, tmp_path: Path
) -> None:
    here = {"model": folder, "problems": problems}
    evaluate(SETTINGS, here, stage_run(tmp_path / "here"))
    there = replace(SETTINGS, url=server.url)
    evaluate(there, {"problems": problems}, stage_run(tmp_path / "there"))
    pair = [read_rows(tmp_path / name / "answers-child-0.parquet") for name in ("here", "there")]
    assert {row.mode for row in pair[0]} == {"on", "off"}
    for ours, theirs in zip(*pair, strict=True):
        assert theirs.completion.strip() == ours.completion.strip()
        assert (theirs.correct, theirs.fault, theirs.found) == (
            ours.correct,
            ours.fault,
            ours.found,
        )
        assert (theirs.num_tokens, theirs.is_finished) == (ours.num_tokens, ours.is_finished)
    for one in differences(tmp_path / "here", tmp_path / "there"):
        assert (one.gain, one.interval, one.num_problems) == (0.0, (0.0, 0.0), len(LESSONS))


def test_an_answer_that_was_paid_for_is_not_asked_again(problems: Path, tmp_path: Path) -> None:
    """The server fails after some answers; the same command asks only for the others."""
    broken, good = [Reply.of({"error": "gone"}, 500)], Reply.of(completion("5"))
    total = len(LESSONS)

    def answer(number: int, body) -> Reply:
        return broken[0] if broken and number >= 2 else good

    with scripted(answer) as server:
        settings = replace(SETTINGS, url=server.url, url_toggle="none")
        with pytest.raises(ValueError, match="500"):
            evaluate(settings, {"problems": problems}, stage_run(tmp_path / "out"))
        num_paid = len(list((tmp_path / "out").rglob("asked/*")))
        before = len(server.posted)
        broken.clear()
        evaluate(settings, {"problems": problems}, stage_run(tmp_path / "out"))
        assert num_paid >= 1
        assert len(server.posted) - before == total - num_paid
    rows = read_rows(tmp_path / "out/answers-child-0.parquet")
    assert [row.completion for row in rows] == ["5"] * total


def test_one_request_that_is_refused_is_an_answer_that_failed(
    problems: Path, tmp_path: Path
) -> None:
    too_long = Reply.of({"error": {"message": "beyond the context"}}, 400)
    with scripted(lambda number, body: too_long if number == 0 else Reply.of(completion("5"))) as s:
        settings = replace(SETTINGS, url=s.url, url_toggle="none")
        evaluate(settings, {"problems": problems}, stage_run(tmp_path / "out"))
    rows = read_rows(tmp_path / "out/answers-child-0.parquet")
    assert [row.error is None for row in rows].count(False) == 1
    figures = json.loads((tmp_path / "out/results.json").read_text())["tasks"]["lessons.jsonl"]
    assert figures["child"]["off"]["failed"] == pytest.approx(1 / len(LESSONS))


def test_kept_parts_are_not_answered_again(
    folder: Path, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fretsaw.eval.evaluate.AT_ONCE", 1)
    inputs, run = {"model": folder, "problems": problems}, stage_run(tmp_path / "out")
    run.stop_requested = True
    with pytest.raises(Interrupted):
        evaluate(SETTINGS, inputs, run)
    kept = list((tmp_path / "out").rglob("child-0-on-*.parquet"))
    assert len(kept) <= 1
    evaluate(SETTINGS, inputs, stage_run(tmp_path / "out"))
    evaluate(SETTINGS, inputs, stage_run(tmp_path / "whole"))
    stopped, whole = (
        read_rows(tmp_path / name / "answers-child-0.parquet") for name in ("out", "whole")
    )
    assert [row.completion for row in stopped] == [row.completion for row in whole]


def completion(content: str) -> dict:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"completion_tokens": 2, "prompt_tokens": 3}}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "5"}, "5"),
        ({"content": "5", "reasoning_content": "2 + 3"}, "<think>\n2 + 3\n</think>\n\n5"),
        ({"content": "5", "reasoning": "2 + 3"}, "<think>\n2 + 3\n</think>\n\n5"),
        ({"content": None, "reasoning": "2 +"}, "<think>\n2 +"),
        ({"content": "5", "reasoning": None}, "5"),
        ({"content": "5", "reasoning_content": ""}, "<think>\n\n</think>\n\n5"),
        ({"content": None}, ""),
    ],
)
def test_the_trace_stands_before_the_answer(message: dict, text: str) -> None:
    assert text_of_answer(message) == text


def test_the_system_turn_tells_the_mode_where_it_is_how() -> None:
    asked = [Message("user", "Hi")]
    with_system = [Message("system", "Be short."), *asked]
    assert told(asked, "on", "v1")[0].content == "detailed thinking on"
    assert told(with_system, "off", "v1")[0].content == "detailed thinking off\n\nBe short."
    assert told(with_system, "off", "v1.5")[0].content == "/no_think\n\nBe short."
    assert told(with_system, "on", "enable_thinking") == with_system


@pytest.mark.parametrize(
    ("settings", "inputs", "said"),
    [
        ({}, [], "give one checkpoint, or one server's URL"),
        ({"url": "http://127.0.0.1:9"}, ["model"], "give one checkpoint, or one server's URL"),
        ({"url": "http://127.0.0.1:9"}, ["corpus"], "a server gives no logits"),
    ],
)
def test_what_is_evaluated_is_one_thing(settings, inputs, said, folder, tmp_path) -> None:
    named = {str(name): Path(folder) for name in inputs}
    with pytest.raises(ValueError, match=said):
        evaluate(replace(SETTINGS, **settings), named, stage_run(tmp_path / "out"))
