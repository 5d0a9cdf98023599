"""Instructions on how much there is: words, sentences, paragraphs."""

import re

from fretsaw.grade.instructions.finding import Finding, Relation, counted
from fretsaw.grade.instructions.sentences import count_sentences

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_FIRST_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def number_words(text: str, *, num_words: int, relation: Relation) -> Finding:
    """The text has so many words; one with an apostrophe is one."""
    return counted(sum(1 for _ in _WORD.finditer(text)), relation, num_words, "words")


def number_words_reference(text: str, *, num_words: int, relation: Relation) -> Finding:
    """The text has so many runs of letters and digits; "don't" is two."""
    return counted(sum(1 for _ in re.finditer(r"\w+", text)), relation, num_words, "words")


def number_sentences(text: str, *, num_sentences: int, relation: Relation) -> Finding:
    """The text has so many sentences."""
    return counted(count_sentences(text, "repaired"), relation, num_sentences, "sentences")


def number_sentences_reference(text: str, *, num_sentences: int, relation: Relation) -> Finding:
    """The text has so many sentences, the numbers of a list's lines among them."""
    return counted(count_sentences(text, "reference"), relation, num_sentences, "sentences")


def number_paragraphs(text: str, *, num_paragraphs: int) -> Finding:
    """The text has exactly so many paragraphs, with *** between them."""
    return _divided(re.split(r"(?<!\S)\*\*\*(?!\S)", text), num_paragraphs)


def number_paragraphs_reference(text: str, *, num_paragraphs: int) -> Finding:
    """The same, but any three asterisks divide: those around ***words*** too."""
    return _divided(text.split("***"), num_paragraphs)


def _divided(parts: list[str], num_paragraphs: int) -> Finding:
    """Return whether the parts are so many paragraphs, the first and the last maybe blank."""
    if any(not part.strip() for part in parts[1:-1]):
        return Finding(False, "a blank paragraph between two dividers")
    count = sum(bool(part.strip()) for part in parts)
    return Finding(count == num_paragraphs, f"{count} paragraphs")


def nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> Finding:
    """The text has exactly so many paragraphs, blank lines apart, and one begins with a word."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    asked = paragraphs[nth_paragraph - 1 : nth_paragraph]
    words = [word[0] for part in asked if (word := _FIRST_WORD.search(part))]
    begins = [word.lower() for word in words] == [first_word.strip().lower()]
    found = f"{len(paragraphs)} paragraphs, first word {words[0] if words else None}"
    return Finding(len(paragraphs) == num_paragraphs and begins, found)


def nth_paragraph_first_word_reference(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> Finding:
    """The same, but blank paragraphs are left out of the count and not of the places."""
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    words = parts[nth_paragraph - 1].split() if nth_paragraph <= count else []
    word = words[0].lstrip("'").lstrip('"') if words else ""
    begin = re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower()
    is_followed = bool(words) and count == num_paragraphs and begin == first_word.lower()
    return Finding(is_followed, f"{count} paragraphs, first word {begin or None}")
