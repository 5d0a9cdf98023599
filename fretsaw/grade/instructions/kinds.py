"""The 25 instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911): one row each, by its id.

A row names the arguments of its instruction and the check of each rule set. Where there is no check
of the reference's own, no defect of it is known and both share one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fretsaw.grade.instructions import content, formats, keywords, language, lengths, wholes
from fretsaw.grade.instructions.finding import RELATIONS, Finding, Rules

Check = Callable[..., Finding]
_LANGUAGES = (
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr"
    " ne nl no pa pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh zh-cn zh-tw"
)
LANGUAGES = frozenset(_LANGUAGES.split())
_OF_EXPRESSIONS = frozenset("\\^$*+?{}[]|()")  # what a regular expression does not read as itself


@dataclass(frozen=True)
class Instruction:
    """One type of instruction."""

    repaired: Check
    reference: Check | None = None
    kwargs: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()  # arguments that the reference reads as regular expressions

    def check(self, rules: Rules) -> Check:
        """Return the check of a rule set."""
        return self.reference if rules == "reference" and self.reference else self.repaired


INSTRUCTIONS: dict[str, Instruction] = {
    "keywords:existence": Instruction(
        keywords.existence,
        keywords.existence_reference,
        kwargs=("keywords",),
        expressions=("keywords",),
    ),
    "keywords:frequency": Instruction(
        keywords.frequency,
        keywords.frequency_reference,
        kwargs=("keyword", "frequency", "relation"),
        expressions=("keyword",),
    ),
    "keywords:forbidden_words": Instruction(
        keywords.forbidden_words,
        keywords.forbidden_words_reference,
        kwargs=("forbidden_words",),
        expressions=("forbidden_words",),
    ),
    "keywords:letter_frequency": Instruction(
        keywords.letter_frequency, kwargs=("letter", "let_frequency", "let_relation")
    ),
    "language:response_language": Instruction(
        language.response_language, language.response_language_reference, kwargs=("language",)
    ),
    "length_constraints:number_sentences": Instruction(
        lengths.number_sentences,
        lengths.number_sentences_reference,
        kwargs=("num_sentences", "relation"),
    ),
    "length_constraints:number_paragraphs": Instruction(
        lengths.number_paragraphs,
        lengths.number_paragraphs_reference,
        kwargs=("num_paragraphs",),
    ),
    "length_constraints:number_words": Instruction(
        lengths.number_words, lengths.number_words_reference, kwargs=("num_words", "relation")
    ),
    "length_constraints:nth_paragraph_first_word": Instruction(
        lengths.nth_paragraph_first_word,
        lengths.nth_paragraph_first_word_reference,
        kwargs=("num_paragraphs", "nth_paragraph", "first_word"),
    ),
    "detectable_content:number_placeholders": Instruction(
        content.number_placeholders,
        content.number_placeholders_reference,
        kwargs=("num_placeholders",),
    ),
    "detectable_content:postscript": Instruction(
        content.postscript,
        content.postscript_reference,
        kwargs=("postscript_marker",),
        expressions=("postscript_marker",),
    ),
    "detectable_format:number_bullet_lists": Instruction(
        formats.number_bullet_lists,
        formats.number_bullet_lists_reference,
        kwargs=("num_bullets",),
    ),
    "detectable_format:constrained_response": Instruction(
        formats.constrained_response, formats.constrained_response_reference
    ),
    "detectable_format:number_highlighted_sections": Instruction(
        formats.number_highlighted_sections,
        formats.number_highlighted_sections_reference,
        kwargs=("num_highlights",),
    ),
    "detectable_format:multiple_sections": Instruction(
        formats.multiple_sections,
        formats.multiple_sections_reference,
        kwargs=("section_spliter", "num_sections"),
        expressions=("section_spliter",),
    ),
    "detectable_format:json_format": Instruction(
        formats.json_format, formats.json_format_reference
    ),
    "detectable_format:title": Instruction(formats.title),
    "combination:two_responses": Instruction(wholes.two_responses),
    "combination:repeat_prompt": Instruction(
        wholes.repeat_prompt, wholes.repeat_prompt_reference, kwargs=("prompt_to_repeat",)
    ),
    "startend:end_checker": Instruction(
        wholes.end_checker, wholes.end_checker_reference, kwargs=("end_phrase",)
    ),
    "startend:quotation": Instruction(wholes.quotation, wholes.quotation_reference),
    "change_case:capital_word_frequency": Instruction(
        language.capital_word_frequency,
        language.capital_word_frequency_reference,
        kwargs=("capital_frequency", "capital_relation"),
    ),
    "change_case:english_capital": Instruction(
        language.english_capital, language.english_capital_reference
    ),
    "change_case:english_lowercase": Instruction(
        language.english_lowercase, language.english_lowercase_reference
    ),
    "punctuation:no_comma": Instruction(wholes.no_comma, wholes.no_comma_reference),
}

_COUNTS = (
    *("num_words", "num_sentences", "num_placeholders", "num_bullets", "num_highlights"),
    *("num_sections", "frequency", "let_frequency", "capital_frequency"),
)
_PLACES = ("num_paragraphs", "nth_paragraph")
_RELATIONS = ("relation", "let_relation", "capital_relation")
_LISTS = ("keywords", "forbidden_words")


def argument_fault(name: str, value: Any) -> str | None:
    """Return the rule that an argument of an instruction breaks, as a remedy, or None."""
    match name:
        case _ if name in _COUNTS:
            return None if _is_whole(value, 0) else "write a whole number, 0 or more"
        case _ if name in _PLACES:
            return None if _is_whole(value, 1) else "write a whole number, 1 or more"
        case _ if name in _RELATIONS:
            return None if value in RELATIONS else f"write one of {', '.join(RELATIONS)}"
        case _ if name in _LISTS:
            is_list = isinstance(value, list | tuple) and value and all(map(_is_text, value))
            return None if is_list else "write a list of words"
        case "letter":
            return None if _is_text(value) and len(value) == 1 else "write one character"
        case "language":
            is_known = isinstance(value, str) and value in LANGUAGES
            return None if is_known else "write a code of ISO 639-1 that langdetect knows, as en"
    return None if _is_text(value) else "write text"


def is_expression(value: Any) -> bool:
    """Return whether the reference would read more in an argument than its words."""
    words = [value] if isinstance(value, str) else value
    return any(_OF_EXPRESSIONS & set(word) for word in words)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
