"""Formulas as final answers: by hand, beside math-verify, and hostile ones within their time."""

import time

import pytest
from math_verify import parse, verify

from fretsaw.grade.grader import grade_batch
from fretsaw.grade.math import final_answer, sure_grade


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So \\boxed{1} no, \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("The answer is $x^2$, since it fits.", "x^2"),
        ("Final answer: 42.", "42"),
        ("**Answer:** 3/4", "3/4"),
        ("worked\n#### 72", "72"),
        ("We get \\(a+b\\) and then \\[a-b\\]", "a-b"),
        ("It costs 5 dollars and 6 cents", "6"),
        ("The answer is $1$ or $-1$.", "1, -1"),
        ("The answer is 18, as 9 * 2 = 18.", "18"),
        ("The answer depends on n.\nSo n = 7.", "7"),
        ("My answer: 5 apples because it is so", "5"),
        ("nothing here", ""),
        ("\\boxed{", ""),
    ],
)
def test_what_an_answer_ends_on(text: str, answer: str) -> None:
    assert final_answer(text) == answer


EQUAL = [
    ("\\frac{1}{2}", "0.5"), ("1/2", "\\dfrac12"), ("x+1", "1+x"), ("2\\sqrt{2}", "\\sqrt{8}"),
    ("(1,2)", "(1, 2)"), ("\\{1,2\\}", "\\{2,1\\}"), ("[0,1)", "[0, 1)"), ("\\text{east}", "east"),
    ("10\\%", "10"), ("1{,}000", "1000"), ("90^\\circ", "90"), ("\\$3.50", "3.5"), ("-\\frac34",
    "-0.75"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("0.05", "5\\%"), ("x=5", "5"), ("\\left(3,\\frac{\\pi}{2}\\right)", "(3,\\frac{\\pi}{2})"),
]  # fmt: skip
UNEQUAL = [
    ("1/2", "1/3"), ("x+1", "x-1"), ("(1,2)", "(2,1)"), ("[0,1)", "[0,1]"), ("2", "-2"),
    ("\\text{east}", "west"), ("3\\sqrt{2}", "2\\sqrt{3}"), ("1000", "1001"), ("\\pi", "3.14"),
    ("12", "1 2"), ("0.15", "0.15\\%"),
]  # fmt: skip


def test_equal_formulas_are_right_and_near_misses_wrong() -> None:
    pairs = [*EQUAL, *UNEQUAL]
    boxed = [(f"so \\boxed{{{given}}}", {"answer": wanted}) for wanted, given in pairs]
    scores = [grade.score for grade in grade_batch("math", boxed)]
    wrong = [pair for pair, score in zip(pairs, scores, strict=True) if score != (pair in EQUAL)]
    assert not wrong
    for wanted, given in pairs:  # what is decided at once is what math-verify decides
        sure = sure_grade(f"\\boxed{{{given}}}", {"answer": wanted})
        if sure is not None:
            gold, found = (parse(f"${text}$", parsing_timeout=0) for text in (wanted, given))
            assert sure.score == verify(gold, found, timeout_seconds=0), (wanted, given)


HOSTILE = [
    "9^{9^{9^{9}}}", "(((" * 200 + "1" + ")))" * 200, "10^{10^{10}}!",
    "\\sqrt{" * 60 + "2" + "}" * 60,
    "2^{100000}", "1" * 900, "x^{x^{x^{x^{x}}}}", "\\frac{1}{" * 80 + "2" + "}" * 80,
    "\\sum_{i=1}^{10^9} i^{i}", "\\int_0^1 x^{x^{x}} dx", "(x+1)^{500}", "\\prod_{n=1}^{99999} n",
    "\\begin{pmatrix}" + "1&" * 300 + "\\end{pmatrix}", "{" * 300, "99999!!!!", "\u0663\u0664^{99}",
    "\\cos(" * 70 + "1" + ")" * 70,
]  # fmt: skip


def test_hostile_answers_cost_no_more_than_their_time() -> None:
    """Seventeen of them, two at once, a second each at most; the batch behind them is graded."""
    assert grade_batch("math", [("\\boxed{x+1}", {"answer": "1+x"})])[0].score == 1  # it is ready
    pairs = [(f"\\boxed{{{formula}}}", {"answer": "x+7"}) for formula in HOSTILE]
    started = time.monotonic()
    grades = grade_batch("math", [*pairs, ("\\boxed{7+x}", {"answer": "x+7"})])
    assert [grade.score for grade in grades] == [0.0] * len(HOSTILE) + [1.0]
    assert time.monotonic() - started < 120  # a hang; each may start a process anew


@pytest.mark.parametrize("filler", [r"\(", "answer: ", "$", "#### ", " ", "answer is\n"])
def test_long_answers_without_a_result_are_read_in_no_time(filler: str) -> None:
    grade = sure_grade(filler * 100_000 + "no\n", {"answer": "7"})
    assert grade is None or grade.score == 0


def test_nothing_expected_is_told() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        sure_grade("1", {"answer": " "})
