"""Whether an answer's number is the expected one."""

import re
from fractions import Fraction

from fretsaw.grade.grader import Expectation, Grade
from fretsaw.grade.numeral import CONTEXT, MAX_DIGITS, last_number, read_number

_BOX = re.compile(r"\\(?:boxed|fbox) ?\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    """Return what the last \\boxed{} holds, by balanced braces, or None where there is no box.

    Of a box in a box the outer one counts; one that is never closed holds nothing.
    """
    content, end = None, 0
    while found := _BOX.search(text, end):
        depth, content = 1, ""
        for brace in _BRACE.finditer(text, found.end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                content, end = text[found.end() : brace.start()], brace.end()
                break
        else:
            return ""
    return content


def final_number(answer: str) -> tuple[str, Fraction | None]:
    """Return the number an answer ends on, as it is written and its exact value.

    It is all of the last \\boxed{}, else the last number of the text. The value is None where that
    can't be read as one number.
    """
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed.strip(), read_number(boxed)
    at = next((i for i in range(len(answer) - 1, -1, -1) if _is_digit(answer[i])), None)
    if at is None:
        return "", None
    number = last_number(answer[max(0, at - 2 * MAX_DIGITS) : at + CONTEXT])
    return ("", None) if number is None else (number.shown, number.value(is_whole=False))


def _is_digit(character: str) -> bool:
    return character.isdecimal() or "¼" <= character <= "¾" or "⅐" <= character <= "⅞"


def grade_number(answer: str, expected: Expectation) -> Grade:
    """Return 1 where the answer's final number has exactly the expected value, and that number.

    Raises ValueError where what is expected is no number.
    """
    wanted = read_number(expected["answer"])
    if wanted is None:
        raise ValueError(
            f"answer {expected['answer']!r}: no number; use another grader, such as exact"
        )
    found, value = final_number(answer)
    return Grade(float(value == wanted), found)
