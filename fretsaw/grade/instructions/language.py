"""Instructions on an answer's language and on the case of its letters.

langdetect draws n-grams at random; here its seed is 0. It reads no more than 10,000 characters.
"""

import functools
import re

from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
from langdetect.lang_detect_exception import LangDetectException

from fretsaw.grade.instructions.finding import Finding, Relation, counted

MAX_CHARACTERS = 20_000  # given to it, since it drops addresses before it counts to 10,000
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_TREEBANK_GAP = re.compile(r"[\s;@#$%&?!*()\[\]{}<>\"“”„«»‘’`]+|--|\.{2,}|[:,](?!\d)")
_CLITIC = re.compile(r"(?<=.)('(?:S|M|D|LL|RE|VE)|N'T)\Z")
_TWO_TOKENS = frozenset(("CANNOT", "GIMME", "GONNA", "GOTTA", "LEMME", "WANNA"))


def detect(text: str) -> str | None:
    """Return the code of a text's language, None where it has nothing to tell it by."""
    detector = _factory().create()
    detector.append(text[:MAX_CHARACTERS])
    try:
        return detector.detect()
    except LangDetectException:
        return None


@functools.cache
def _factory() -> DetectorFactory:
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory


def response_language(text: str, *, language: str) -> Finding:
    """The text is in a language; zh is both of langdetect's Chinese."""
    found = detect(text)
    is_followed = found is not None and found in (language, f"{language}-cn", f"{language}-tw")
    return Finding(is_followed, found or "no language told")


def response_language_reference(text: str, *, language: str) -> Finding:
    """The text is in a language, or in none that can be told."""
    found = detect(text)
    return Finding(found in (None, language), found or "no language told")


def english_capital(text: str) -> Finding:
    """The text has capital letters alone, and in small ones is English."""
    return _english(text.isupper(), detect(text.lower()))


def english_capital_reference(text: str) -> Finding:
    """The same of the text as it is, of whose capitals langdetect reads few; or of no language."""
    if not text.isupper():
        return Finding(False, "not all capitals")
    found = detect(text)
    return Finding(found in (None, "en"), found or "no language told")


def english_lowercase(text: str) -> Finding:
    """The text has small letters alone and is English."""
    return _english(text.islower(), detect(text))


def english_lowercase_reference(text: str) -> Finding:
    """The text has small letters alone and is English, or no language can be told."""
    if not text.islower():
        return Finding(False, "not all small letters")
    found = detect(text)
    return Finding(found in (None, "en"), found or "no language told")


def _english(is_in_case: bool, language: str | None) -> Finding:
    case = "" if is_in_case else ", letters of the other case"
    return Finding(is_in_case and language == "en", (language or "no language told") + case)


def capital_word_frequency(
    text: str, *, capital_frequency: int, capital_relation: Relation
) -> Finding:
    """So many words are all capitals; those with an apostrophe or a hyphen are one."""
    count = sum(word[0].isupper() for word in _WORD.finditer(text))
    return counted(count, capital_relation, capital_frequency, "words in capitals")


def capital_word_frequency_reference(
    text: str, *, capital_frequency: int, capital_relation: Relation
) -> Finding:
    """So many tokens of the Penn Treebank are all capitals; CAN'T and CANNOT are two."""
    count = sum(map(_capital_tokens, _TREEBANK_GAP.split(text)))
    return counted(count, capital_relation, capital_frequency, "words in capitals")


def _capital_tokens(word: str) -> int:
    if "'" in word:
        return sum(token.isupper() for token in _CLITIC.split(word))
    return word.isupper() + (word.rstrip(".") in _TWO_TOKENS)
