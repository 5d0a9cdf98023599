"""Instructions on words and letters that must stand in an answer, or must not.

The reference reads a keyword as a regular expression, and finds it within longer words too.
"""

import re
from collections.abc import Sequence

from fretsaw.grade.instructions.finding import Finding, Relation, counted, whole_word


def existence(text: str, *, keywords: Sequence[str]) -> Finding:
    """Every keyword is a word of the text."""
    missing = [word for word in keywords if not whole_word(word.strip()).search(text)]
    return Finding(not missing, f"missing: {', '.join(missing) or 'none'}")


def existence_reference(text: str, *, keywords: Sequence[str]) -> Finding:
    """Every keyword stands in the text, be it within a word."""
    missing = [word for word in keywords if not re.search(word, text, re.IGNORECASE)]
    return Finding(not missing, f"missing: {', '.join(missing) or 'none'}")


def frequency(text: str, *, keyword: str, frequency: int, relation: Relation) -> Finding:
    """A keyword is a word of the text so many times."""
    times = len(whole_word(keyword.strip()).findall(text))
    return counted(times, relation, frequency, f"times {keyword}")


def frequency_reference(text: str, *, keyword: str, frequency: int, relation: Relation) -> Finding:
    """A keyword stands in the text so many times, be it within words."""
    times = len(re.findall(keyword.strip(), text, re.IGNORECASE))
    return counted(times, relation, frequency, f"times {keyword}")


def forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> Finding:
    """None of the words is a word of the text."""
    said = [word for word in forbidden_words if whole_word(word.strip()).search(text)]
    return Finding(not said, f"said: {', '.join(said) or 'none'}")


def forbidden_words_reference(text: str, *, forbidden_words: Sequence[str]) -> Finding:
    """None stands between two edges of words, so that C++ before a space is never found."""
    said = [w for w in forbidden_words if re.search(rf"\b{w}\b", text, re.IGNORECASE)]
    return Finding(not said, f"said: {', '.join(said) or 'none'}")


def letter_frequency(
    text: str, *, letter: str, let_frequency: int, let_relation: Relation
) -> Finding:
    """A letter, or another single character, stands in the text so many times, in any case."""
    times = text.lower().count(letter.lower())
    return counted(times, let_relation, let_frequency, f"times {letter}")
