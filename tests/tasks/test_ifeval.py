"""IFEval's file: every row is read, what can't be graded is named, and the four figures."""

import json
from pathlib import Path

import pytest

from fretsaw.chat.message import Message
from fretsaw.grade.grader import grade_batch
from fretsaw.tasks.ifeval import figures, read
from fretsaw.tasks.problem import read_problems

ROW = {
    "key": 7,
    "prompt": "Say bye without commas.",
    "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
    "kwargs": [{"num_words": None}, {"end_phrase": "Bye."}],
}


def written(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_whole_file_is_read(data_folder: Path) -> None:
    problems = read(data_folder / "ifeval/input_data_lines_001-299.jsonl")
    assert len(problems) == len({problem.id for problem in problems}) == 299
    assert (problems[0].id, problems[0].kind) == ("1000", "3 instructions")
    assert problems[0].messages[0].content.startswith("Write a 300+ word summary")
    ids = [id for problem in problems for id in problem.expected["instruction_id_list"]]
    assert len(ids) == 453
    assert len(set(ids)) == 25
    pairs = [("I can't, sorry.", problem.expected) for problem in problems]
    assert 0 < sum(grade.score for grade in grade_batch("instructions", pairs)) < 60


def test_a_row(tmp_path: Path) -> None:
    (problem,) = read(written(tmp_path / "a.jsonl", ROW))
    assert (problem.id, problem.kind, problem.grader) == ("7", "2 instructions", "instructions")
    assert problem.messages == (Message("user", ROW["prompt"]),)
    assert problem.text == ROW["prompt"]
    wanted = {name: ROW[name] for name in ("instruction_id_list", "kwargs")}
    assert problem.expected == {**wanted, "rules": "repaired"}
    assert problem.where.endswith("a.jsonl, line 1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "7"}, "key is '7'; write a whole number"),
        ({"key": True}, "key is True; write a whole number"),
        ({"key": 7}, "key is 7, as in .*line 1; give each its own"),
        ({"prompt": " "}, "prompt is ' '; write the question"),
        ({"prompt": None}, "prompt is None; write the question"),
        ({"kwargs": None}, "kwargs is None; write a list of 2 objects"),
        ({"instruction_id_list": None}, "instruction_id_list is None; write a list"),
        ({"instruction_id_list": ["a", "b"]}, "instruction 'a': unknown"),
        ({"kwargs": [{}, {}]}, "startend:end_checker: end_phrase is missing"),
        ({"kwargs": [{"letter": "a"}, {}]}, "no argument 'letter'; it has none"),
    ],
)
def test_a_row_that_cannot_be_graded_is_named(tmp_path: Path, change: dict, message: str) -> None:
    path = written(tmp_path / "a.jsonl", ROW, {**ROW, "key": 8, **change})
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{message}"):
        read(path)


def test_the_four_figures() -> None:
    """Strict: 1 of 3 prompts, 3 of 6 instructions; with a line forgiven 2 and 4."""
    answers = ["Well. Bye.", "Sure, here:\nWell. Bye.", "Well, no."]
    grades = grade_batch("instructions", [(answer, ROW) for answer in answers])
    assert figures([grade.evidence for grade in grades]) == {
        "prompt_strict": 1 / 3,
        "prompt_loose": 2 / 3,
        "instruction_strict": 3 / 6,
        "instruction_loose": 4 / 6,
    }
    with pytest.raises(ValueError, match="evidence is empty"):
        figures([])
    with pytest.raises(ValueError, match="no verdict 0 of an instruction"):
        figures(["3"])


def test_ones_own_problems_may_have_instructions(tmp_path: Path) -> None:
    expected = {name: ROW[name] for name in ("instruction_id_list", "kwargs")}
    own = {"prompt": "Bye?", "grader": "instructions", "expected": expected, "verdict": "loose"}
    (problem,) = read_problems(written(tmp_path / "a.jsonl", own))
    assert problem.expected == {**expected, "verdict": "loose"}
    assert [g.score for g in grade_batch("instructions", [("Sure,\nBye.", problem.expected)])] == [
        1
    ]
    expected["kwargs"] = [{}, {"end_phrase": 3}]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: .*end_phrase is 3; write text"):
        read_problems(written(tmp_path / "a.jsonl", own))
