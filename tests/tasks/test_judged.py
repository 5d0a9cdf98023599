"""Sets that a model judges, and one where the model is the judge."""

import json
from pathlib import Path

import pytest
from scripted import Reply, scripted
from support import stage_run

from fretsaw.client.judge_settings import JudgeSettings
from fretsaw.eval.evaluate import evaluate
from fretsaw.eval.settings import EvalSettings
from fretsaw.grade.grader import grade_batch
from fretsaw.rollout.rows import read_rows
from fretsaw.tasks import mt_bench, pairs


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def says(text: str) -> Reply:
    message = {"role": "assistant", "content": text}
    return Reply.of({"choices": [{"message": message, "finish_reason": "stop"}]})


def test_mt_bench_is_read_as_it_is_published(data_folder: Path) -> None:
    problems = mt_bench.read(data_folder / "mt_bench/question.jsonl")
    assert len(problems) == 80
    assert all(problem.then for problem in problems)
    by_reference = [p for p in problems if "ref_answer_1" in p.expected["fields"]]
    assert len(by_reference) == 30
    for problem in problems:
        for turn in (problem, problem.followed("I say {answer} and {question_1}")):
            assert turn is not None
            assert turn.expected["prompt"].count("{answer}") == 1


def test_the_second_turn_follows_on_the_first_and_both_are_rated(tmp_path: Path) -> None:
    prompts = [
        {"name": name, "prompt_template": template, "system_prompt": "Judge."}
        for name, template in (
            ("single-v1", "Q {question} A {answer}"),
            ("single-v1-multi-turn", "Q {question_1} A {answer_1} Q {question_2} A {answer_2}"),
            ("single-math-v1", "{ref_answer_1} {answer}"),
            ("single-math-v1-multi-turn", "{ref_answer_2} {answer_2}"),
        )
    ]
    write(tmp_path / "judge_prompts.jsonl", *prompts)
    turns = ["two", "four"]
    write(
        tmp_path / "reference_answer/gpt-4.jsonl",
        {"question_id": 2, "choices": [{"turns": turns}]},
    )
    rows = [
        {"question_id": 1, "category": "writing", "turns": ["first?", "second?"]},
        {"question_id": 2, "category": "math", "turns": ["1 + 1?", "2 + 2?"]},
    ]
    questions = write(tmp_path / "question.jsonl", *rows)
    judged: list[str] = []

    def answer(number: int, body: dict) -> Reply:
        turns = [turn["content"] for turn in body["messages"]]
        if turns[0] == "Judge.":
            judged.append(turns[1])
            return says("Rating: [[8]]" if "first" in turns[1] else "Rating: [[5]]")
        return says(f"reply {len(turns)} to {turns[-1]}")

    with scripted(answer) as server:
        settings = EvalSettings(
            task="mt_bench",
            url=server.url,
            url_toggle="none",
            judge=JudgeSettings(judge_url=server.url),
        )
        evaluate(settings, {"problems": questions}, stage_run(tmp_path / "out"))
    assert sorted(judged) == [
        "Q first? A reply 1 to first?",
        "Q first? A reply 1 to first? Q second? A reply 3 to second?",
        "four reply 3 to 2 + 2?",
        "two reply 1 to 1 + 1?",
    ]
    answers = read_rows(tmp_path / "out/answers-child-0.parquet")
    assert [row.group for row in answers] == [0, 1, 2, 3]
    assert [row.kind for row in answers][::2] == ["writing, turn 1", "writing, turn 2"]
    results = json.loads((tmp_path / "out/results.json").read_text())["tasks"]["mt_bench"]
    assert results["child"]["off"]["rating"] == pytest.approx(6.5)


def test_arena_hard_is_judged_in_both_orders(data_folder: Path, tmp_path: Path) -> None:
    published = data_folder / "arena_hard/v0.1/question.jsonl"
    rows = [json.loads(line) for line in published.read_text().splitlines()]
    (tmp_path / "question.jsonl").write_text(published.read_text())
    answers = [
        {"question_id": row["uid"], "choices": [{"turns": [{"content": "base {answer}"}]}]}
        for row in rows
    ]
    write(tmp_path / pairs.BASELINE, *answers)
    problems = pairs.read_arena_hard(tmp_path / "question.jsonl")
    assert len(problems) == 500
    write(tmp_path / pairs.BASELINE, *answers[1:])
    with pytest.raises(ValueError, match="has no answer to"):
        pairs.read_arena_hard(tmp_path / "question.jsonl")


def test_a_much_better_answer_counts_three_times() -> None:
    assert pairs.win_rate(["B>A, B>A"]) == {"win_rate": 1.0}
    assert pairs.win_rate(["B>>A, A>B", "no verdict"]) == {"win_rate": 3 / 4}
    assert pairs.win_rate(["A=B, A>>B"]) == {"win_rate": 0.5 / 4}
    assert pairs.win_rate(["no verdict"]) == {}


def test_judgebench_is_right_where_more_votes_are_for_the_label(data_folder: Path) -> None:
    file = data_folder / "judgebench/claude-3-5-sonnet-20240620.jsonl"
    problems = pairs.read_judgebench(file)
    assert len(problems) == 540
    assert {p.answer for p in problems} == {"A>B", "B>A"}
    for given, swapped in zip(problems[::2], problems[1::2], strict=True):
        assert given.answer != swapped.answer
    grades = grade_batch("verdict", [(f"so [[{p.answer}]]", p.expected) for p in problems])
    evidence = [grade.evidence for grade in grades]
    assert all(grade.score == 1 for grade in grades)
    assert pairs.pair_accuracy(evidence) == {"pair_accuracy": 1.0}
    first = grade_batch("verdict", [("[[A>B]]", p.expected) for p in problems])
    assert sum(grade.score for grade in first) == 270  # whoever always says A is right once a pair
    assert pairs.pair_accuracy([grade.evidence for grade in first]) == {"pair_accuracy": 0.0}
    assert pairs.pair_accuracy(["B>>A for B>A", "A=B for A>B"]) == {"pair_accuracy": 1.0}
