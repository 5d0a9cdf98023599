"""A judge with three outcomes: right, wrong, and no verdict."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import Reply, Scripted, scripted
from support import stage_run

from fretsaw.client.judge import Judge
from fretsaw.client.judge_settings import JudgeSettings
from fretsaw.eval.evaluate import evaluate
from fretsaw.eval.settings import EvalSettings
from fretsaw.grade.grader import Grade, grade_batch
from fretsaw.grade.judge import READERS
from fretsaw.rollout.rows import read_rows

PAIR = {"prompt": "A: base\nB: {answer}", "swapped": "A: {answer}\nB: base", "reads": "pair"}


def says(text: str) -> Reply:
    return Reply.of({"choices": [{"message": {"role": "assistant", "content": text}}]})


def judged(
    answer: Callable[[int, dict], Reply], pairs: list, **settings
) -> tuple[list[Grade], Scripted]:
    with scripted(answer) as server:
        judge = Judge(JudgeSettings(judge_url=server.url, judge_deadline_s=1.0, **settings))
        return grade_batch("judge", pairs, judge), server


@pytest.mark.parametrize(
    ("reads", "reply", "verdict"),
    [
        ("yes_no", "It fits.\nJudgement: Yes", ("Yes", 1.0)),
        ("yes_no", "Judgement: Yes? No: **Judgement:** no", ("No", 0.0)),
        ("yes_no", "judgment: YES.", ("Yes", 1.0)),
        ("yes_no", "Yes, I would say so", None),
        ("yes_no", "Judgement: Yesterday", None),
        ("rating", "Rating: [[7]]", ("7", 0.7)),
        ("rating", "[[3]] or rather [[4.5]]", ("4.5", 0.45)),
        ("rating", "[[0]]", None),
        ("rating", "[[11]]", None),
        ("rating", "7 of 10", None),
        ("pair", "[[A>B]] but no: [[B>>A]]", ("B>>A", 1.0)),
        ("pair", "[[A=B]]", ("A=B", 0.5)),
        ("pair", "A>B", None),
    ],
)
def test_replies_are_read(reads: str, reply: str, verdict) -> None:
    assert READERS[reads](reply) == verdict


def test_an_answer_is_compared_with_the_right_one_and_no_text_of_it_is_a_field() -> None:
    def answer(number: int, body: dict) -> Reply:
        prompt = body["messages"][-1]["content"]
        is_whole = "What is it? {answer}" in prompt
        return says(f"Judgement: {'Yes' if is_whole and 'a fox {reference}' in prompt else 'No'}")

    expected = {"question": "What is it? {answer}", "answer": "a fox"}
    grades, _ = judged(answer, [("a fox {reference}", expected), ("a dog", expected)])
    assert grades == [Grade(1.0, "Yes"), Grade(0.0, "No")]


def test_nonsense_time_outs_and_429_are_no_verdict() -> None:
    def answer(number: int, body: dict) -> Reply:
        prompt = body["messages"][-1]["content"]
        if "busy" in prompt:
            return Reply.of({"error": {"message": "slow down"}}, 429, headers={"Retry-After": "9"})
        if "slow" in prompt:
            return Reply(says("Judgement: Yes").pieces, pause_s=3.0)
        return says("I like it" if "odd" in prompt else "Judgement: Yes")

    expected = {"prompt": "Is it right? {answer}"}
    grades, _ = judged(answer, [(a, expected) for a in ("good", "odd", "busy", "slow")])
    assert [grade.is_graded for grade in grades] == [True, False, False, False]
    assert grades[1].evidence == "no verdict"
    assert "429" in grades[2].evidence


def test_a_judge_that_never_answers_is_told() -> None:
    with pytest.raises(ValueError, match=r"refused \(500\)"):
        judged(lambda n, body: Reply.of({"error": "x"}, 500), [("a", {"prompt": "{answer}"})])


@pytest.mark.parametrize(
    ("first", "second", "grade"),
    [
        ("[[B>A]]", "[[A>B]]", Grade(1.0, "B>A, B>A")),  # better in both orders
        ("[[B>A]]", "[[B>A]]", Grade(0.5, "B>A, A>B")),  # whoever stands second is better
        ("[[A>>B]]", "[[A=B]]", Grade(0.25, "A>>B, B=A")),
        ("[[B>A]]", "no idea", Grade(0.0, "no verdict", is_graded=False)),
    ],
)
def test_a_pair_is_judged_in_both_orders(first: str, second: str, grade: Grade) -> None:
    def answer(number: int, body: dict) -> Reply:
        return says(first if body["messages"][-1]["content"].startswith("A: base") else second)

    assert judged(answer, [("mine", PAIR)])[0] == [grade]


def test_most_votes_count_and_a_tie_is_no_verdict() -> None:
    def answer(number: int, body: dict) -> Reply:
        yes = (0, 1) if "split" in body["messages"][-1]["content"] else (0, 1, 2)
        return says(f"Judgement: {'Yes' if body['seed'] in yes else 'No'}")

    expected = {"prompt": "{answer}"}
    votes = {"judge_votes": 4, "judge_temperature": 0.7}
    grades, server = judged(answer, [("whole", expected), ("split", expected)], **votes)
    assert (grades[0].score, grades[0].is_graded, grades[1].is_graded) == (1.0, True, False)
    assert len(server.posted) == 8


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({}, "neither a prompt for the judge nor the right answer"),
        ({"prompt": "Is it right?"}, r"has no \{answer\} in it"),
        ({"prompt": "{answer}", "reads": "stars"}, "reads is 'stars'; write one of yes_no"),
        ({"prompt": "{answer}", "swapped": "{answer}"}, "only a pair has two orders"),
    ],
)
def test_what_can_not_be_judged_is_told_where_it_is_read(expected, said, tmp_path: Path) -> None:
    row = {"prompt": "?", "grader": "judge", "expected": expected}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    settings = EvalSettings()
    inputs = {"model": tmp_path, "problems": tmp_path / "own.jsonl"}
    with pytest.raises(ValueError, match=said):
        evaluate(settings, inputs, stage_run(tmp_path / "out"))


def test_eval_counts_what_has_no_verdict_beside_the_score(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{i}?", "grader": "judge", "expected": {"prompt": f"judge {i}: {{answer}}"}}
        for i in range(4)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    verdicts = {"0": "Judgement: Yes", "1": "Judgement: No", "2": "who knows"}
    judged = []

    def answer(number: int, body: dict) -> Reply:
        asked = body["messages"][-1]["content"]
        if asked.startswith("judge "):
            judged.append(asked)
            return says(verdicts[asked[6]])
        message = {"role": "assistant", "content": "so it is"}
        reason = "length" if asked == "3?" else "stop"
        return Reply.of({"choices": [{"message": message, "finish_reason": reason}]})

    inputs = {"problems": tmp_path / "own.jsonl"}
    with scripted(answer) as server:
        alone = EvalSettings(url=server.url, url_toggle="none")
        with pytest.raises(ValueError, match="is graded by a model; give --judge-url"):
            evaluate(alone, inputs, stage_run(tmp_path / "none"))
        settings = replace(alone, judge=JudgeSettings(judge_url=server.url))
        evaluate(settings, inputs, stage_run(tmp_path / "out"))
    answers = read_rows(tmp_path / "out/answers-child-0.parquet")
    found = [(row.correct, row.is_graded) for row in answers]
    assert found == [(1, True), (0, True), (0, False), (0, True)]
    figures = json.loads((tmp_path / "out/results.json").read_text())["tasks"]["own.jsonl"]["child"]
    assert figures["off"]["no_verdict"] == 1 / 4
    assert figures["off"]["accuracy"] == pytest.approx(1 / 3)
    assert len(judged) == 3  # what was cut is wrong without asking
