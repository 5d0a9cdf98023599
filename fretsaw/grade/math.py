"""An answer's final formula or number, and whether it equals the expected one where that is plain.

Most are numbers, or written alike, and are decided at once. The rest is for `algebra.py`.
"""

import re
from fractions import Fraction

from fretsaw.grade.grader import Expectation, Grade
from fretsaw.grade.number import final_number, last_boxed
from fretsaw.grade.numeral import read_number

MAX_FORMULA = 1000  # characters; a longer one is no final answer
MAX_READ = 4000  # characters at the end of an answer without a box, where its result stands
_SAID = re.compile(r"(?:\banswer\b[\s*]*(?:is\b|=|:)[\s*:]*|####)", re.IGNORECASE)
_SENTENCE = re.compile(r"\n|\.(?=\s|$)")
_FORMULA = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SPACES = re.compile(
    r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|\\(?:left|right)(?![a-zA-Z])|~"
    r"|(?<!\d)\s+|\s+(?!\d)"  # 1 2 is not 12
)
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"\^\{?\\circ\}?|\\degree|\\%|%|\\\$|\$")


def final_answer(answer: str) -> str:
    """Return what an answer ends on: its last box, what follows "the answer is", else the last
    formula or number.

    What follows goes to the end of its sentence: all of its formulas, or its number, or its words.
    """
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed.strip()
    answer = answer[-MAX_READ:].rstrip()
    said = [found.end() for found in _SAID.finditer(answer) if found.end() < len(answer)]
    text = _SENTENCE.split(answer[said[-1] :].strip(), maxsplit=1)[0] if said else answer
    formulas = [next(filter(None, found)).strip() for found in _FORMULA.findall(text)]
    if formulas:
        return ", ".join(formulas) if said else formulas[-1]
    number, value = final_number(text)
    return text.strip(" *_") if said and value is None else number


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
    values = _values(found, ours), _values(wanted, theirs)
    if all(values):
        return Grade(float(not values[0].isdisjoint(values[1])), found)
    return Grade(1.0, found) if ours == theirs else None


def _values(text: str, plain_text: str) -> set[Fraction]:
    """Return what a numeral may mean, 5% for one 0.05 or 5, as it is whole; a formula nothing."""
    value = read_number(plain_text)
    if value is None:
        return set()
    if "%" not in text:
        return {value}
    return {value / 100, value} if value.denominator == 1 else {value / 100}


def plain(formula: str) -> str:
    """Return a formula as it is compared: without spaces, text marks, units' signs and dollars."""
    text = formula.strip().strip("$")
    while (inner := _TEXT.sub(r"\1", text)) != text:
        text = inner
    text = _SPACES.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _UNIT.sub("", text).rstrip(".")
