"""An answer's final formula or number, and whether it equals the expected one where that is plain.

Most are numbers, or written alike, and are decided at once. The rest is for `algebra.py`.
"""

import re

from fretsaw.grade.grader import Expectation, Grade
from fretsaw.grade.number import final_number, last_boxed
from fretsaw.grade.numeral import read_number

MAX_FORMULA = 1000  # characters; a longer one is no final answer
_SAID = re.compile(r"(?:\bfinal answer|\banswer)\b[\s*:]*(?:is|=|:)?[\s*:]*|####", re.IGNORECASE)
_FORMULA = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|\\(?:left|right)(?![a-zA-Z])|~|\s+")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"\^\{?\\circ\}?|\\degree|\\%|%|\\\$|\$")


def final_answer(answer: str) -> str:
    """Return what an answer ends on: its last box, what follows "the answer is", else the last
    formula or number.
    """
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed.strip()
    said = [found.end() for found in _SAID.finditer(answer)]
    rest = answer[said[-1] :].strip() if said else ""
    text = rest.splitlines()[0] if rest else answer
    formulas = [next(filter(None, found)) for found in _FORMULA.findall(text)]
    if formulas:
        return formulas[-1].strip()
    if rest:
        return text.strip().rstrip(".*_ ")
    return final_number(answer)[0]


def sure_grade(answer: str, expected: Expectation) -> Grade | None:
    """Return the grade where both are numbers or written alike; None where it takes algebra.

    Raises ValueError where nothing is expected.
    """
    wanted = expected["answer"]
    if not wanted.strip():
        raise ValueError(f"answer {wanted!r}: nothing to compare; write a formula or a number")
    found = final_answer(answer)
    if not found or len(found) > MAX_FORMULA:
        return Grade(0.0, f"{found[:80]}... ({len(found)} characters)" if found else "")
    ours, theirs = plain(found), plain(wanted)
    if ours == theirs:
        return Grade(1.0, found)
    values = read_number(ours), read_number(theirs)
    is_percent = ["%" in text for text in (found, wanted)]  # 5 % may be meant by 0.05
    if None not in values and is_percent[0] == is_percent[1]:
        return Grade(float(values[0] == values[1]), found)
    return None


def plain(formula: str) -> str:
    """Return a formula as it is compared: without spaces, text marks, units' signs and dollars."""
    text = formula.strip().strip("$")
    while (inner := _TEXT.sub(r"\1", text)) != text:
        text = inner
    text = _SPACES.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _UNIT.sub("", text).rstrip(".")
