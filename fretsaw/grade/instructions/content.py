"""Instructions on what must be somewhere in an answer: placeholders, a postscript."""

import re

from fretsaw.grade.instructions.finding import Finding

_PLACEHOLDER = re.compile(r"\[([^\[\]\n]*)\](?!\()")
_CHECKBOX = ("", "x")


def number_placeholders(text: str, *, num_placeholders: int) -> Finding:
    """The text has at least so many [placeholders]; links, checkboxes and blanks are none."""
    found = [p for p in _PLACEHOLDER.findall(text) if p.strip().lower() not in _CHECKBOX]
    return Finding(len(found) >= num_placeholders, f"{len(found)} placeholders")


def number_placeholders_reference(text: str, *, num_placeholders: int) -> Finding:
    """The text has at least so many pairs of square brackets, each on one line."""
    count = sum(map(_pairs, text.split("\n")))
    return Finding(count >= num_placeholders, f"{count} placeholders")


def _pairs(line: str) -> int:
    """Return how often a [ and the next ] stand in a line, one pair after another."""
    count, opened = 0, line.find("[")
    while opened >= 0 and (closed := line.find("]", opened)) >= 0:
        count, opened = count + 1, line.find("[", closed)
    return count


def postscript(text: str, *, postscript_marker: str) -> Finding:
    """A postscript begins with its marker and has words; within U.S.P.S. there is none."""
    letters = postscript_marker.strip().rstrip(".").split(".")
    marker = r"\.\s?".join(map(re.escape, letters))
    pattern = rf"(?<![\w.]){marker}(?!\w)[\s.:*-]*\w"
    return _at(re.search(pattern, text, re.IGNORECASE))


def postscript_reference(text: str, *, postscript_marker: str) -> Finding:
    """The marker stands anywhere, be it in another abbreviation, and with nothing after it."""
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = postscript_marker.strip()
    return _at(re.search(known.get(marker, marker.lower()), text.lower()))


def _at(match: re.Match[str] | None) -> Finding:
    found = "no postscript" if match is None else f"postscript at character {match.start()}"
    return Finding(match is not None, found)
