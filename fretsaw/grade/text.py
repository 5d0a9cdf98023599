"""Whether an answer's words are the expected ones."""

import re
import unicodedata
from collections.abc import Sequence

from fretsaw.grade.grader import Expectation, Grade
from fretsaw.grade.plain import DASHES

LETTERS = "ABCDEFGHIJ"  # the choices where an expected answer is one of them and none are given
_MINUS = dict.fromkeys(map(ord, DASHES), "-")
_AS_CHOICE = "(?: (?:is|or|and|but|because)\\b)"  # what makes "A" or "I" before a word a choice
_OR = r"(?:(?:and/)?or\b|/)"
_ARTICLE = r"(?:(?:a|an|the|option|answer|choice|either) )?"
_MARKS = r"[\s\"'“”‘’`*_(),.:\[\]]*"


def normalise(text: str) -> str:
    """Return the text without case, doubled spaces, and a full stop at the end."""
    return _spaced(text).casefold().removesuffix(".")


def _spaced(text: str) -> str:
    """Return the text in one form of each character, one space between words; 3² is no 32."""
    kept = (
        c if unicodedata.category(c) == "No" else unicodedata.normalize("NFKC", c) for c in text
    )
    composed = unicodedata.normalize("NFC", "".join(kept))
    return " ".join(composed.translate(_MINUS).split())


def grade_exact(answer: str, expected: Expectation) -> Grade:
    """Return 1 where the answer is the expected text, and what was compared.

    Raises ValueError where no text is expected.
    """
    found, wanted = normalise(answer), normalise(expected["answer"])
    if not wanted:
        raise ValueError(f"answer {expected['answer']!r}: nothing to compare; write a word")
    return Grade(float(found == wanted), found)


def grade_contains(answer: str, expected: Expectation) -> Grade:
    """Return 1 where the expected words stand in the answer and no other choice does.

    A choice stands there as whole words that no sign, digit or hyphen lengthens. Where one holds
    another, the longer is what the answer says. "A or B" says neither, whatever the choices.
    Raises ValueError for choices that are no texts, or that lack the answer.
    """
    wanted, choices = expected["answer"], _choices(expected)
    said: dict[str, str] = {}
    rest = _spaced(answer)
    for choice in sorted({*choices, wanted}, key=len, reverse=True):
        pattern = _pattern(choice)
        if found := pattern.search(rest):
            said[choice] = found[0]
            if choice == wanted and _is_hedged(rest, pattern):
                return Grade(0.0, f"{found[0]} or another")
        rest = pattern.sub(" \0 ", rest)
    same = [said[choice] for choice in said if normalise(choice) == normalise(wanted)]
    others = [said[choice] for choice in said if normalise(choice) != normalise(wanted)]
    return Grade(float(bool(same) and not others), ", ".join([*same, *others]))


def _choices(expected: Expectation) -> Sequence[str]:
    wanted, given = expected["answer"], expected.get("choices")
    if not normalise(wanted):
        raise ValueError(f"answer {wanted!r}: nothing to look for; write a word")
    if given is None:
        return LETTERS if wanted.strip() in tuple(LETTERS) else ()
    if not isinstance(given, list | tuple) or not all(
        isinstance(choice, str) and normalise(choice) for choice in given
    ):
        raise ValueError(f"choices {given!r}: write a list of texts, the answer among them")
    if normalise(wanted) not in map(normalise, given):
        raise ValueError(f"choices {list(given)!r}: the answer {wanted!r} is not among them")
    return given


def _pattern(choice: str) -> re.Pattern[str]:
    """Return what finds a choice as words of their own; a single letter in its own case."""
    words = re.escape(_spaced(choice).removesuffix("."))
    before, after = r"(?<!\w)(?<!\w[-'])", r"(?!\w)(?!-\w)"
    if words[:1].isdigit():
        before += r"(?<![-+.,/^$:])(?<![-+.,/^:] )"
    if words[-1:].isdigit():
        after += r"(?![.,/:^]\d)(?! ?[%/^*+]|²|³)(?! - ?\d)"
    if len(words) == 1 and words.isalpha():
        after += r"(?![-+#'])"
        if words in "AI":
            after += rf"(?:(?! [a-z])|(?={_AS_CHOICE}))"
        return re.compile(before + words + after)
    return re.compile(before + words + after, re.IGNORECASE)


def _is_hedged(text: str, pattern: re.Pattern[str]) -> bool:
    """Whether a choice stands beside an "or"."""
    before = re.compile(rf"(?:(?<!\w)or\b|/){_MARKS}{_ARTICLE}{_MARKS}$", re.IGNORECASE)
    after = re.compile(rf"{_MARKS}{_OR}", re.IGNORECASE)
    return any(
        before.search(text[max(0, found.start() - 60) : found.start()])
        or after.match(text, found.end())
        for found in pattern.finditer(text)
    )
