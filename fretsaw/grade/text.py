"""Whether an answer's words are the expected ones."""

import re
import unicodedata
from collections.abc import Sequence

from fretsaw.grade.grader import Expectation, Grade
from fretsaw.grade.numeral import bare_number, says_number
from fretsaw.grade.plain import DASHES

LETTERS = "ABCDEFGHIJ"  # the choices where an expected answer is one of them and none are given
_MINUS = dict.fromkeys(map(ord, DASHES), "-")
_AS_CHOICE = "(?: (?:is|or|and|but|because)\\b)"  # what makes "A" or "I" before a word a choice
_OR = r"(?:(?:and/)?or\b(?! so\b)|/)"
_MARKS = r"[\s\"'“”‘’`*_(),.:\[\]]*"
_FILLER = (
    r"(?:a|an|the|option|answer|choice|either|else|maybe|perhaps|possibly|probably|even|rather"
    r"|be|been|it|is|it's|in|at)\b"
)
_HEDGED_BEFORE = re.compile(rf"(?:(?<!\w)or\b|/)(?:{_MARKS}{_FILLER}){{0,4}}{_MARKS}$", re.I)
_HEDGED_AFTER = re.compile(rf"{_MARKS}{_OR}", re.I)
_GUESS = re.compile(r"\b(?:maybe|perhaps|possibly)\b", re.I)
_DENIED = re.compile(
    rf"(?:\b(?:not|never|neither|nor|cannot)|n['’]t)\b(?:{_MARKS}{_FILLER}){{0,3}}{_MARKS}$", re.I
)
_BEFORE = 60  # characters before a choice that decide whether it is denied, or one of two
# scripts that put no space, or particles, beside a word
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
    r"\uf900-\ufaff\U00020000-\U0003ffff]"
)


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

    A choice stands there as whole words that no sign, digit or hyphen lengthens; one that is a
    number, as a number of its own. Where one holds another, the longer is what the answer says.
    "A or B" says neither, whatever the choices, and "not A" does not say A.
    Raises ValueError for choices that are no texts, or that lack the answer.
    """
    wanted, choices = expected["answer"], _choices(expected)
    said: dict[str, str] = {}
    rest = _without_questions(_spaced(answer))
    for choice in sorted({*choices, wanted}, key=len, reverse=True):
        if (number := bare_number(choice)) is not None:
            if says_number(answer, number, is_alone=choice == wanted):
                said[choice] = choice.strip()
            continue
        pattern = _pattern(choice)
        if found := pattern.search(rest):
            said[choice] = found[0]
            if choice == wanted and (doubt := _doubt(rest, pattern)):
                return Grade(0.0, f"{found[0]} {doubt}")
        rest = pattern.sub(" \0 ", rest)
    same = [said[choice] for choice in said if normalise(choice) == normalise(wanted)]
    others = [said[choice] for choice in said if normalise(choice) != normalise(wanted)]
    return Grade(float(bool(same) and not others), ", ".join([*same, *others]))


def grade_recall(answer: str, expected: Expectation) -> Grade:
    """Return the share of the expected words that stand in the answer, as words of their own.

    Raises ValueError where none are expected.
    """
    words = expected["words"]
    is_texts = isinstance(words, list | tuple) and all(
        isinstance(word, str) and normalise(word) for word in words
    )
    if not is_texts or not words:
        raise ValueError(f"words {words!r:.80}: write a list of texts to look for")
    text = _spaced(answer).casefold()
    whole = r"(?<!\w)(?<!\w-){}(?!\w)(?!-\w)"  # no part of a longer word or number
    found = [w for w in words if re.search(whole.format(re.escape(normalise(w))), text)]
    return Grade(len(found) / len(words), ", ".join(found))


def _without_questions(text: str) -> str:
    """Return the text without questions that an answer follows: Blue or red? Red."""
    parts = re.split(r"(?<=[.?!]) ", text)
    kept = [part for part in parts[:-1] if not (part.endswith("?") and " or " in part)]
    return " ".join([*kept, parts[-1]])


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
    if len(words) == 1 and words.isascii() and words.isalpha():
        after += r"(?![-+#'’])"
        if words in "AI":
            after += rf"(?:(?! [a-z])|(?={_AS_CHOICE}))"
        return re.compile(before + words + after)
    before += r"(?<!(?<!\.)\.)"  # .NET
    after += r"(?!['’](?:t|ll|ve|re|d|m)\b)(?!\.(?-i:[a-z0-9]))"  # can't, example.com
    starts, ends = (_UNSPACED.match(c) for c in (_spaced(choice)[0], words[-1]))
    return re.compile(("" if starts else before) + words + ("" if ends else after), re.IGNORECASE)


def _doubt(text: str, pattern: re.Pattern[str]) -> str:
    """Return whether a choice is denied, or one of several, in words; nothing where it is said."""
    guesses = 0
    for found in pattern.finditer(text):
        before = text[max(0, found.start() - _BEFORE) : found.start()]
        if _DENIED.search(before):
            return "is denied"
        if _HEDGED_BEFORE.search(before) or _HEDGED_AFTER.match(text, found.end()):
            return "or another"
        guesses += bool(re.search(rf"{_GUESS.pattern}{_MARKS}$", before, re.I))
    if guesses and len(_GUESS.findall(text)) > guesses:
        return "or another"
    return ""
