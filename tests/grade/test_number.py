import pytest

from fretsaw.grade.grader import Grade
from fretsaw.grade.number import as_number, final_number, grade_number


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("12", "12", True),
        ("The answer is 12.", "12", True),
        ("It is 3, no, 12", "12", True),
        ("12 of 20", "12", False),  # the last number counts
        ("12.0", "12", True),
        ("$1,200", "1200", True),
        ("1,200.50", "1200.5", True),
        ("-12", "12", False),
        ("0.5", "1/2", True),
        (r"so \boxed{12}, not 13", "12", True),
        (r"\boxed{1} and then \boxed{12}", "12", True),
        ("", "12", False),
        ("twelve", "12", False),
        ("1/0", "12", False),
    ],
)
def test_grades(answer, expected, right):
    assert grade_number(answer, {"answer": expected}).score == float(right)


def test_what_was_found_is_evidence():
    assert grade_number("maybe 7", {"answer": "12"}) == Grade(0.0, "7")
    assert grade_number("who knows", {"answer": "12"}) == Grade(0.0, "")
    assert final_number(r"\boxed{x}") is None
    assert as_number("x") is None


def test_an_expected_answer_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"'a dozen': no number; use another grader"):
        grade_number("12", {"answer": "a dozen"})
