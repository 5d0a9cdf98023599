"""Graders as a table, in batches, and killed where they hang."""

import os
import time

import pytest

from fretsaw.grade.grader import GRADERS, Grade, Grader, grade_batch


def grade_or_hang(answer: str, expected) -> Grade:
    if answer == "hang":
        time.sleep(600)
    if answer == "die":
        os._exit(9)
    if answer == "raise":
        raise ValueError(f"cannot grade {answer!r}")
    return Grade(float(len(answer) == expected["length"]), answer)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> str:
    row = Grader(
        summary="hangs at times",
        function="grade.test_grader:grade_or_hang",
        keys=("length",),
        may_hang=True,
        deadline_s=2.0,
    )
    monkeypatch.setitem(GRADERS, "hanging", row)
    return "hanging"


def test_a_batch_is_graded_in_its_order() -> None:
    pairs = [(str(n), {"answer": "3"}) for n in range(5)]
    assert [grade.score for grade in grade_batch("number", pairs)] == [0, 0, 0, 1, 0]


def test_what_hangs_or_dies_costs_its_own_grade_alone(hanging: str) -> None:
    answers = ["abc", "hang", "die", "ab", "xyz", "hang", "abc"]
    grades = grade_batch(hanging, [(answer, {"length": 3}) for answer in answers])
    assert [grade.score for grade in grades] == [1, 0, 0, 0, 1, 0, 1]
    assert grades[1].evidence == grades[5].evidence == "no grade within 2 s"
    assert grades[2].evidence == "the grader's process died"
    assert grades[3] == Grade(0.0, "ab")


def test_an_error_of_a_grader_is_no_grade(hanging: str) -> None:
    with pytest.raises(ValueError, match="cannot grade 'raise'"):
        grade_batch(hanging, [("abc", {"length": 3}), ("raise", {"length": 3})])


def test_nothing_to_grade(hanging: str) -> None:
    assert grade_batch(hanging, []) == []
