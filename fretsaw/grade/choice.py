"""Which of several choices an answer takes: by its letter, in a box or in words, or by its text."""

import re
from collections.abc import Mapping

from fretsaw.grade.grader import Expectation, Grade
from fretsaw.grade.number import last_boxed
from fretsaw.grade.text import grade_contains, normalise

# "the answer is (B)", "Answer: **B**", "option B is correct"
_SAID = (
    r"\b(?:answer|choice|option|correct one)\b(?:\s+(?:is|would be|should be|must be))?"
    r"\s*[:=]?\s*(?:\\text|option|choice|letter)?\s*[\s\"'“*_({{\[$]*({names})(?![\w+#'’]|-\w)"
    r"(?![\s)}}\]*,]*(?:or|and|/)[\s({{\[*]*(?:{names})\b)"
)
MAX_READ = 20_000  # characters at the end of an answer, where it takes its choice
_MARKS = " \t\n\r\"'“”*_(){}[]$.:,;"
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{([^{}]*)\}")


def grade_choice(answer: str, expected: Expectation) -> Grade:
    """Return 1 where the answer takes the expected choice, and which it takes.

    `answer` names it, `choices` has the texts by name, or a list of them that are named A, B, ... A
    box counts before words, "the answer is B" before a letter alone, and a letter before the text.
    Two at once are none. Raises ValueError for choices that are none, or that lack the answer.
    """
    choices = _choices(expected)
    wanted = expected["answer"]
    name = taken(answer, choices)
    if name is None:
        return Grade(0.0)
    same = name == wanted or normalise(choices[name]) == normalise(choices[wanted])
    return Grade(float(same), name)


def taken(answer: str, choices: Mapping[str, str]) -> str | None:
    """Return the name of the choice that an answer takes, by the surest sign that it gives."""
    answer = answer[-MAX_READ:]
    boxed = last_boxed(answer)
    if boxed is not None:
        return _named(boxed, choices)
    names = "|".join(sorted(map(re.escape, choices), key=len, reverse=True))
    said = re.compile(_SAID.format(names=names), re.IGNORECASE).findall(answer)
    known = {name.casefold(): name for name in choices}
    # "an answer a day" takes nothing: these small letters are words
    said = [known[name.casefold()] for name in said if name in choices or name not in ("a", "i")]
    if said:
        return said[-1]
    lines = [line for line in answer.splitlines() if line.strip()]
    for line in (*lines[-1:], *lines[:1]):
        if (found := _named(line, choices)) is not None:
            return found
    alone = (name for name in choices if _stands(answer, name, [*choices]))
    texts = (n for n, text in choices.items() if _stands(answer, text, [*choices.values()]))
    return next(alone, None) or next(texts, None)


def _named(text: str, choices: Mapping[str, str]) -> str | None:
    """Return the choice that a short text is: its name, its text, or both."""
    while (plain := _WRAPPED.sub(r"\1", text)) != text:
        text = plain
    bare = text.strip(_MARKS)
    for name, choice in choices.items():
        rest = re.match(rf"{re.escape(name)}(?![\w+#'’])[\s).:\]}}*-]*(.*)$", bare, re.DOTALL)
        if rest and normalise(rest[1].strip(_MARKS)) in ("", normalise(choice.strip(_MARKS))):
            return name
        if bare.casefold() == name.casefold():
            return name
    same = (n for n, choice in choices.items() if normalise(choice) == normalise(text.strip()))
    return next(same, None)


def _stands(answer: str, text: str, others: list[str]) -> bool:
    """Whether a choice stands in the answer, whatever others do."""
    if not normalise(text):
        return False
    unlike = [other for other in others if normalise(other) and normalise(other) != normalise(text)]
    grade = grade_contains(answer, {"answer": text, "choices": [text, *unlike]})
    return bool(grade.score)


def _choices(expected: Expectation) -> Mapping[str, str]:
    given, wanted = expected["choices"], expected["answer"]
    if isinstance(given, list | tuple):
        given = {chr(ord("A") + i): choice for i, choice in enumerate(given)}
    is_named = isinstance(given, Mapping) and all(
        isinstance(name, str) and name.strip() and isinstance(choice, str)
        for name, choice in given.items()
    )
    if not is_named or not 2 <= len(given) <= 26:
        raise ValueError(f"choices {given!r:.80}: write 2 to 26 texts, as a list or by name")
    if wanted not in given:
        raise ValueError(f"answer {wanted!r}: names no choice; they are {', '.join(given)}")
    return given
