"""Words that are expected, and answers that only look as if they said them."""

import time

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
    ("- 3", "-3"),
    ("minus 3", "-3"),
    ("$3$", "3"),
    (r"\boxed{3}", "3"),
    ("3.0", "3"),
    ("3 or so", "3"),
    ("The answer — 3", "3"),
    ("$3", "$3"),
    ("3 percent", "3%"),
    ("Blue or red? Red.", "red"),
    ("red for it is red or so", "red"),
    ("maybe red", "red"),
    ("not only red", "red"),
    ("no, red", "red"),
    ("答えは東京です", "東京"),
    ("서울입니다", "서울"),
    ("กรุงเทพครับ", "กรุงเทพ"),
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
    ("minus 3", "3"),
    ("negative 3", "3"),
    ("±3", "3"),
    ("3 percent", "3"),
    ("3 per cent", "3"),
    ("3‰", "3"),
    (r"3\%", "3"),
    (r"\sqrt{3}", "3"),
    (r"\frac{1}{3}", "3"),
    (r"3\pi", "3"),
    ("3 pi", "3"),
    ("√3", "3"),
    ("3 1/2", "3"),
    ("3 000", "3"),
    ("3 million", "3"),
    ("3 dozen", "3"),
    ("3 × 2", "3"),
    ("3 x 2", "3"),
    ("x<3", "3"),
    ("≠ 3", "3"),
    ("2 - 3", "3"),
    ("3 (or 4)", "3"),
    ("$3", "3"),
    ("10^3", "3"),
    ("3rd", "3"),
    ("not 3", "3"),
    ("5 -3", "-3"),
    ("--3", "-3"),
    ("-$3", "$3"),
    ("3", "$3"),
    ("3", "3%"),
    ("not Paris", "Paris"),
    ("not **Paris**", "Paris"),
    ("It isn't Paris", "Paris"),
    ("It isn’t the Paris", "Paris"),
    ("never Paris", "Paris"),
    ("cannot be Paris", "Paris"),
    ("is not in Paris", "Paris"),
    ("neither Paris nor London", "Paris"),
    ("neither Paris nor London", "London"),
    ("not A", "A"),
    ("It can't be D", "D"),
    ("either London or maybe Paris", "Paris"),
    ("London or else Paris", "Paris"),
    ("Paris, or possibly London", "Paris"),
    ("maybe London, maybe Paris", "Paris"),
    ("red or blue?", "red"),
    ("Blue or red? Red.", "blue"),
    ("can't", "can"),
    ("can’t", "can"),
    ("He'll go", "he"),
    (".NET", "NET"),
    ("example.com", "com"),
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


@pytest.mark.parametrize(
    ("answer", "expected", "choices", "score"),
    [
        ("not yes", "yes", ["yes", "no"], 0.0),
        ("not yes", "no", ["yes", "no"], 0.0),
        ("Yes or no? No.", "no", ["yes", "no"], 1.0),
        ("3 and 4", "3", ["3", "4"], 0.0),
        ("the 3", "3", ["3", "4"], 1.0),
        ("-4", "-4", ["4", "-4"], 1.0),
        ("-4", "4", ["4", "-4"], 0.0),
    ],
)
def test_choices_that_deny_or_are_numbers(answer, expected, choices, score):
    assert grade_contains(answer, {"answer": expected, "choices": choices}).score == score


@pytest.mark.parametrize(
    "text",
    [
        *("3 " * 50_000, "4 3 " * 25_000, "Paris or " * 20_000, "not " * 30_000 + "Paris"),
        *("? " * 50_000, "ab— " * 30_000, " " * 100_000 + "3", "maybe Paris " * 10_000),
    ],
)
def test_long_texts_take_no_longer(text):
    started = time.perf_counter()
    for expected in ("3", "Paris"):
        grade_contains(text, {"answer": expected})
    assert time.perf_counter() - started < 60  # a hang; it takes 1 s


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.sampled_from([*"0123456789.,/-+%$ !", "1e999", " or ", "not "])).map("".join))
def test_any_text_is_searched_for_a_number(answer):
    for expected in ("3", "1e-3999", "-0.5", "$3", "3%", "9" * 3999):
        assert grade_contains(answer, {"answer": expected}).score in (0.0, 1.0)


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
