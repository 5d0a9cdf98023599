"""Words that are expected, and answers that only look as if they said them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fretsaw.grade.grader import Grade
from fretsaw.grade.text import grade_contains, grade_exact


def test_exact_ignores_case_spaces_and_a_full_stop():
    assert grade_exact("  The  Red box.", {"answer": "the red box"}).score == 1.0
    assert grade_exact("the red box now", {"answer": "the red box"}).score == 0.0
    assert grade_exact("２２", {"answer": "22"}).score == 1.0
    assert grade_exact("2²", {"answer": "22"}).score == 0.0


RIGHT = [
    ("A cat sat.", "cat"),
    ("The Cat's hat", "cat"),
    ("a big  red\nball", "red ball"),
    ("The order is RED", "red"),
    ("It is for sure New York", "new york"),
    ("A", "A"),
    ("The answer is A.", "A"),
    ("(A)", "A"),
    ("**A**", "A"),
    ("A) red", "A"),
    ("A is right", "A"),
    ("Option B", "B"),
    ("I think it is B", "B"),
    ("A good answer is B", "B"),
    ("I'd say D", "D"),
    ("The answer is I.", "I"),
    ("K", "K"),
    ("3", "3"),
    ("It is 3.", "3"),
    ("x=3", "3"),
    ("3 apples", "3"),
    ("−3", "-3"),
]
WRONG = [
    ("A catalogue", "cat"),
    ("red-hot", "red"),
    ("non-red", "red"),
    ("A or B", "A"),
    ("A and B", "A"),
    ("A/B", "A"),
    ("B, not A", "B"),  # what is denied can't be known
    ("a cat", "A"),
    ("A cat", "A"),
    ("I am sure", "I"),
    ("Because", "B"),
    ("B+", "B"),
    ("C++", "C"),
    ("k", "K"),
    ("-3", "3"),
    ("−3", "3"),
    ("- 3", "3"),
    ("3", "-3"),
    ("x-3", "-3"),
    ("13", "3"),
    ("3.5", "3"),
    ("0.3", "3"),
    ("3,000", "3"),
    ("3/4", "3"),
    ("3%", "3"),
    ("3²", "3"),
    ("3:45", "3"),
    ("3 or 4", "3"),
    ("red or blue", "red"),
    ("blue or red", "red"),
    ("a red or a blue one", "red"),
    ("either a blue, or a red", "red"),
    ("red/blue", "red"),
]
OF_CHOICES = [
    ("red", "red", 1.0),
    ("I like RED", "Red", 1.0),
    ("red and blue", "red", 0.0),
    ("red, not blue", "red", 0.0),
    ("dark red", "red", 0.0),
    ("dark red", "dark red", 1.0),
    ("dark red and red", "dark red", 0.0),
    ("green", "red", 0.0),
]


@pytest.mark.parametrize(("answer", "expected"), RIGHT)
def test_whole_words_are_found(answer, expected):
    assert grade_contains(answer, {"answer": expected}).score == 1.0


@pytest.mark.parametrize(("answer", "expected"), WRONG)
def test_other_words_numbers_and_hedges_are_not(answer, expected):
    assert grade_contains(answer, {"answer": expected}).score == 0.0


@pytest.mark.parametrize(("answer", "expected", "score"), OF_CHOICES)
def test_an_answer_that_says_another_choice_is_wrong(answer, expected, score):
    choices = ["Red", "blue", "dark red"]
    assert grade_contains(answer, {"answer": expected, "choices": choices}).score == score


def test_what_was_found_is_evidence():
    assert grade_contains("A cat", {"answer": "cat"}) == Grade(1.0, "cat")
    assert grade_contains("dog", {"answer": "cat"}) == Grade(0.0, "")
    assert grade_contains("A or B", {"answer": "B"}).evidence == "B or another"
    assert grade_contains("B, not A", {"answer": "B"}).evidence == "B, A"


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"answer": " . "}, "nothing to look for; write a word"),
        ({"answer": "A", "choices": "ABC"}, "write a list of texts, the answer among them"),
        ({"answer": "A", "choices": ["A", 3]}, "write a list of texts"),
        ({"answer": "A", "choices": ["A", ""]}, "write a list of texts"),
        ({"answer": "A", "choices": ["B", "C"]}, "the answer 'A' is not among them"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(expected, message):
    with pytest.raises(ValueError, match=message):
        grade_contains("", expected)


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="nothing to compare; write a word"):
        grade_exact("", {"answer": "."})


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(), st.text(min_size=1), st.lists(st.text(min_size=1), max_size=3))
def test_any_text_has_a_grade(answer, expected, choices):
    try:
        grade_contains("", {"answer": expected, "choices": [expected, *choices]})
    except ValueError:
        return
    grade = grade_contains(answer, {"answer": expected, "choices": [expected, *choices]})
    assert grade.score in (0.0, 1.0)
