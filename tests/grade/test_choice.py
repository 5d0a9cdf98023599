"""Which choice an answer takes, by hand."""

import pytest

from fretsaw.grade.choice import grade_choice

CHOICES = {"A": "3", "B": "5 apples", "C": "a fox", "D": "None of these"}


@pytest.mark.parametrize(
    "answer",
    [
        "B", "b", "the answer is b", "answer: b)", "(B)", "B.", "**B**", "B) 5 apples",
        "B: 5 apples\nbecause it is so", "option B",
        "\\boxed{B}", "\\boxed{\\text{(B)}}", "\\boxed{5 apples}", "\\boxed{A} no, \\boxed{B}",
        "The answer is B.", "the answer is (B) because 2 + 3 = 5", "Answer: **B**",
        "I think A is wrong. The answer is B", "the correct option is: B", "5 apples",
        "It is 5 apples.",
        "Let me think.\nB", "A is too small.\n\nSo the final answer is B",
        "Reason: ...\n\nB) 5 apples",
        "A or B? I say the answer is B", "The answer is B and that is it",
    ],
)  # fmt: skip
def test_the_choice_that_is_taken(answer: str) -> None:
    assert grade_choice(answer, {"answer": "B", "choices": CHOICES}).evidence == "B"
    assert grade_choice(answer, {"answer": "B", "choices": CHOICES}).score == 1
    assert grade_choice(answer, {"answer": "A", "choices": CHOICES}).score == 0


@pytest.mark.parametrize(
    "answer",
    ["", "A or B", "The answer is A or B", "The answer is (A), or (B).", "an apple a day", "42",
     "The answer is an apple", "\\boxed{E}", "\\boxed{}", "A and B", "answer a day", "Bears eat"],
)  # fmt: skip
def test_what_takes_none(answer: str) -> None:
    for wanted in CHOICES:
        assert grade_choice(answer, {"answer": wanted, "choices": CHOICES}).score == 0


def test_the_same_text_under_two_names_is_right_under_both() -> None:
    choices = {"A": "8.75", "B": "8.79", "C": "8.75"}
    assert grade_choice("The answer is A", {"answer": "C", "choices": choices}).score == 1
    assert grade_choice("8.75", {"answer": "C", "choices": choices}).score == 1
    assert grade_choice("8.79", {"answer": "C", "choices": choices}).score == 0


def test_a_list_is_named_by_letters() -> None:
    assert grade_choice("C", {"answer": "C", "choices": ["x", "y", "z"]}).score == 1


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"answer": "E", "choices": CHOICES}, "names no choice; they are A, B, C, D"),
        ({"answer": "A", "choices": "AB"}, "write 2 to 26 texts"),
        ({"answer": "A", "choices": {"A": "1"}}, "write 2 to 26 texts"),
        ({"answer": "A", "choices": {"A": 1, "B": 2}}, "write 2 to 26 texts"),
    ],
)
def test_what_is_no_choice_is_told(expected: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grade_choice("A", expected)


def test_a_long_answer_is_read_in_time() -> None:
    long = "perhaps (A) or " * 50_000
    assert grade_choice(long, {"answer": "B", "choices": CHOICES}).score == 0
