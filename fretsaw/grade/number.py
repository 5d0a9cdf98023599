"""Whether an answer's number is the expected one."""

import re
from fractions import Fraction

from fretsaw.grade.grader import Expectation, Grade

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def final_number(answer: str) -> str | None:
    """Return the number an answer ends on: that in its last \\boxed{}, else its last number."""
    boxed = _BOXED.findall(answer)
    found = _NUMBER.findall(boxed[-1] if boxed else answer)
    return found[-1] if found else None


def as_number(text: str) -> Fraction | None:
    """Return the exact value of a number as people write it (1,200.50 or 3/4), else None."""
    try:
        return Fraction(text.strip().replace(",", "").removeprefix("$"))
    except (ValueError, ZeroDivisionError):
        return None


def grade_number(answer: str, expected: Expectation) -> Grade:
    """Return 1 where the answer's final number has exactly the expected value, and that number.

    Raises ValueError where what is expected is no number.
    """
    wanted = as_number(expected["answer"])
    if wanted is None:
        raise ValueError(
            f"answer {expected['answer']!r}: no number; use another grader, such as exact"
        )
    found = final_number(answer)
    return Grade(float(found is not None and as_number(found) == wanted), found or "")
