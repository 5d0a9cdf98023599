"""What a number is, what is none, and how answers of them are graded."""

import time
from fractions import Fraction

import pytest
from grade.number_cases import FALSE_FRIENDS, NUMBERS
from hypothesis import given, settings
from hypothesis import strategies as st

from fretsaw.data import world
from fretsaw.grade.grader import Grade
from fretsaw.grade.number import final_number, grade_number, last_boxed
from fretsaw.grade.numeral import MAX_DIGITS, read_number

FUZZ = settings(deadline=None, derandomize=True, max_examples=60)
PIECES = st.sampled_from(
    [
        *r"0123456789.,/-+*=^_{}()[]$%&!'~ xe",
        *("\n", "−", "–", "½", "²", "٣", "\u202f", "…", "10^", " or ", "1e999"),
        *(r"\boxed{", r"\frac", r"\text{", r"\times", r"\,", r"\!", r"\sqrt"),
    ]
)


@pytest.mark.parametrize(("answer", "value"), NUMBERS, ids=[repr(one[0]) for one in NUMBERS])
def test_a_number_is_read(answer, value):
    assert final_number(answer)[1] == value
    assert grade_number(answer, {"answer": str(value)}).score == 1.0
    assert grade_number(answer, {"answer": str(value + 1)}).score == 0.0


@pytest.mark.parametrize("answer", FALSE_FRIENDS, ids=map(repr, FALSE_FRIENDS))
def test_what_is_no_number_is_wrong(answer):
    assert final_number(answer)[1] is None
    assert grade_number(answer, {"answer": "3"}).score == 0.0


def spellings(value: Fraction) -> list[str]:
    """Return ways in which people write a number."""
    sign, size = "-" if value < 0 else "", abs(value)
    if size.denominator > 1:
        top, bottom = size.numerator, size.denominator
        found = [f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", f"{top} / {bottom}"]
        whole, rest = divmod(top, bottom)
        if whole:
            found += [f"{whole} {rest}/{bottom}", rf"{whole}\dfrac{{{rest}}}{{{bottom}}}"]
    else:
        n = int(size)
        found = [str(n), f"{n}.0", f"{n}e0", f"{n} apples", f"{n}%", rf"{n} \times 10^{{0}}"]
        found += [f"{n:,}", f"{n:,}".replace(",", "\u202f"), f"{n:,}".replace(",", r"\,")]
        found += [f"{n:,}".replace(",", "{,}"), f"{n:,}".replace(",", " "), f"${n:,}"]
    signs = ["-", "−", "–"] if sign else [""]
    return [mark + one for mark in signs for one in found]


@FUZZ
@given(st.one_of(st.integers(), st.integers(-(10**40), 10**40), st.fractions()))
def test_every_number_is_read_however_it_is_written(value):
    value = Fraction(value)
    for text in spellings(value):
        for answer in (text, f"The answer is {text}.", f"so **{text}**", rf"\boxed{{{text}}} 5"):
            assert final_number(answer)[1] == value, answer
            assert grade_number(answer, {"answer": str(value)}).score == 1.0


@FUZZ
@given(st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join)))
def test_any_text_has_a_grade(answer):
    started = time.perf_counter()
    shown, value = final_number(answer)
    read_number(answer)
    assert time.perf_counter() - started < 30  # a hang; it takes 0.2 ms
    assert value is None or any(c.isnumeric() for c in shown)


@pytest.mark.parametrize(
    "text",
    [
        "1" * 100_000,
        "1," * 50_000,
        "1 " * 50_000,
        "(" * 100_000 + "3",
        r"\boxed{" * 20_000,
        r"\boxed{3} " * 20_000,
        r"\frac{1}{" * 20_000,
        "1e999999999",
        "=" * 100_000 + "3",
        "٣" * 100_000,
        " " * 100_000 + "3",
        "3" + " " * 100_000,
        r"\text{" * 20_000 + "3" + "}" * 20_000,
        "a" * 100_000 + ":3",
    ],
)
def test_long_texts_take_no_longer(text):
    started = time.perf_counter()
    final_number(text)
    read_number(text)
    assert time.perf_counter() - started < 30  # a hang; it takes 10 ms


def test_long_numbers_are_compared_to_the_last_digit():
    long = "9" * (MAX_DIGITS - 1)
    assert grade_number(long, {"answer": long}).score == 1.0
    assert grade_number(long[:-1] + "8", {"answer": long}).score == 0.0
    assert grade_number("0.1", {"answer": "0.1" + "0" * 50 + "1"}).score == 0.0
    assert read_number("9" * (MAX_DIGITS + 1)) is None


def test_the_last_box_counts_by_its_braces():
    assert last_boxed(r"\boxed{a} \boxed{\frac{1}{\sqrt{2}}} b") == r"\frac{1}{\sqrt{2}}"
    assert last_boxed(r"\boxed{\{3\}}") == r"\{3\}"
    assert last_boxed("3") is None


def test_the_generated_world_is_graded_as_it_is_written():
    for seed in range(300):
        problem = world.make_problem(seed, num_steps=1 + seed % 5)
        for answer in (problem.answer, world.problem_completion(problem, mode="on")):
            assert grade_number(answer, {"answer": problem.answer}).score == 1.0


def test_what_was_found_is_evidence():
    assert grade_number("maybe 7", {"answer": "12"}) == Grade(0.0, "7")
    assert grade_number("x = 7-3", {"answer": "12"}) == Grade(0.0, "7-3")
    assert grade_number("who knows", {"answer": "12"}) == Grade(0.0, "")


@pytest.mark.parametrize("answer", ["a dozen", "x^2", "3 or 4", "1/0", "nan", "inf", "3,4"])
def test_an_expected_answer_that_is_no_number_is_refused(answer):
    with pytest.raises(ValueError, match=r"no number; use another grader"):
        grade_number("12", {"answer": answer})
