"""Instructions on the whole of an answer: two responses, how it begins and ends, no commas."""

import re

from fretsaw.grade.instructions.finding import Finding

_QUOTES = (('"', '"'), ("“", "”"))


def two_responses(text: str) -> Finding:
    """Two different responses have ****** between them; it may also begin or end the text."""
    parts = [part.strip() for part in text.split("******")]
    responses = [part for part in parts if part]
    is_followed = all(parts[1:-1]) and len(responses) == 2 and len(set(responses)) == 2
    return Finding(is_followed, f"{len(responses)} responses, {len(set(responses))} different")


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> Finding:
    """The text begins with the prompt, in any case, and goes on."""
    begins = repeat_prompt_reference(text, prompt_to_repeat=prompt_to_repeat)
    goes_on = len(text.strip().lower()) > len(prompt_to_repeat.strip().lower())
    if begins.is_followed and not goes_on:
        return Finding(False, "nothing after the prompt")
    return begins


def repeat_prompt_reference(text: str, *, prompt_to_repeat: str) -> Finding:
    """The text begins with the prompt, in any case."""
    begins = text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    return Finding(begins, f"begins {text.strip()[:40]}")


def end_checker(text: str, *, end_phrase: str) -> Finding:
    """The text ends with the phrase, in any case, but for quotes and Markdown around it."""
    marks = " \t\r\n\"'“”‘’*_`"
    is_followed = text.rstrip(marks).lower().endswith(end_phrase.rstrip(marks).strip().lower())
    return Finding(is_followed, f"ends {text.strip()[-40:]}")


def end_checker_reference(text: str, *, end_phrase: str) -> Finding:
    """The text ends with the phrase, in any case, but for straight double quotes around it."""
    is_followed = text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    return Finding(is_followed, f"ends {text.strip()[-40:]}")


def quotation(text: str) -> Finding:
    """All of the text stands in double quotes, straight or curly."""
    return _quoted(text, _QUOTES)


def quotation_reference(text: str) -> Finding:
    """All of the text stands in straight double quotes."""
    return _quoted(text, _QUOTES[:1])


def _quoted(text: str, quotes: tuple[tuple[str, str], ...]) -> Finding:
    text = text.strip()
    ends = (text[:1], text[-1:])
    return Finding(len(text) > 1 and ends in quotes, f"from {ends[0]} to {ends[1]}")


def no_comma(text: str) -> Finding:
    """There is no comma of any script."""
    return _commas(len(re.findall("[,，、،]", text)))


def no_comma_reference(text: str) -> Finding:
    """There is no comma of ASCII."""
    return _commas(text.count(","))


def _commas(count: int) -> Finding:
    return Finding(count == 0, f"{count} commas")
