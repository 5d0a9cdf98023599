"""Whether two formulas are equal, by math-verify: it knows fractions, sets, intervals, matrices.

It may take seconds over a hostile answer whatever its own time limits say, so it works in processes
that are killed (its limits are off), and is given the extracted answer alone.
"""

import logging

from math_verify import parse, verify

from fretsaw.grade.grader import Expectation, Grade
from fretsaw.grade.math import final_answer, sure_grade

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of every limit that is off


def grade_math(answer: str, expected: Expectation) -> Grade:
    """Return 1 where the final answer equals the expected one, and what was compared."""
    if (grade := sure_grade(answer, expected)) is not None:
        return grade
    found = final_answer(answer)
    wanted, given = (parse(f"${text}$", parsing_timeout=0) for text in (expected["answer"], found))
    is_equal = bool(wanted and given) and verify(wanted, given, timeout_seconds=0)
    return Grade(float(is_equal), found)
