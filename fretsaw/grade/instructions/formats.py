"""Instructions on an answer's form: bullets, highlights, sections, a title, JSON, fixed options."""

import json
import re

from fretsaw.grade.instructions.finding import Finding
from fretsaw.stage.json_text import parse_json

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_HIGHLIGHT = re.compile(r"(?<![*\w])(\*{1,3})(?=[^\s*])[^*\n]*[^\s*]\1(?!\*)")
_FENCES = ("```json", "```Json", "```JSON", "```")


def number_bullet_lists(text: str, *, num_bullets: int) -> Finding:
    """The text has exactly so many lines that are bullets of Markdown; dividers are none."""
    return _bullets(sum(map(_is_bullet, text.split("\n"))), num_bullets)


def _is_bullet(line: str) -> bool:
    line = line.strip()
    return line[:1] in ("*", "+", "-") and line[1:2].isspace() and bool(line.strip("*+- \t"))


def number_bullet_lists_reference(text: str, *, num_bullets: int) -> Finding:
    """The same of lines that begin with a dash, or with one asterisk: *words* and --- too."""
    lines = [line.lstrip() for line in text.split("\n")]
    count = sum(line.startswith("-") for line in lines)
    i = 0
    while i < len(lines):
        if lines[i] == "*":  # what follows the asterisk is then the next line
            count += i + 1 < len(lines)
            i += 1
        else:
            count += lines[i].startswith("*") and not lines[i].startswith("**")
        i += 1
    return _bullets(count, num_bullets)


def _bullets(count: int, num_bullets: int) -> Finding:
    return Finding(count == num_bullets, f"{count} bullets")


def number_highlighted_sections(text: str, *, num_highlights: int) -> Finding:
    """The text has at least so many passages in *one*, **two** or ***three*** asterisks."""
    count = sum(1 for _ in _HIGHLIGHT.finditer(text))
    return Finding(count >= num_highlights, f"{count} highlights")


def number_highlighted_sections_reference(text: str, *, num_highlights: int) -> Finding:
    """The same, but three asterisks count twice, and so do a bullet's and the next one."""
    single = re.findall(r"\*[^\n*]*\*", text)
    double = re.findall(r"\*\*[^\n*]*\*\*", text)
    count = sum(bool(one.strip("*").strip()) for one in [*single, *double])
    return Finding(count >= num_highlights, f"{count} highlights")


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> Finding:
    """At least so many lines begin as "Section 1" does."""
    heading = re.compile(rf"[\s#*_>-]*{re.escape(section_spliter.strip())}\s?\d")
    count = sum(heading.match(line) is not None for line in text.split("\n"))
    return Finding(count >= num_sections, f"{count} sections")


def multiple_sections_reference(text: str, *, section_spliter: str, num_sections: int) -> Finding:
    """The same, wherever in a line: "as in Section 1" begins one."""
    count = sum(1 for _ in re.finditer(rf"{section_spliter.strip()}\s?\d+", text))
    return Finding(count >= num_sections, f"{count} sections")


def title(text: str) -> Finding:
    """A line has a <<title>>: from its first << to its last >>, with more than brackets within."""
    for line in text.split("\n"):
        opened, closed = line.find("<<"), line.rfind(">>")
        if 0 <= opened <= closed - 3:
            within = line[opened : closed + 2].lstrip("<").rstrip(">").strip()
            if within:
                return Finding(True, within)
    return Finding(False, "no title")


def json_format(text: str) -> Finding:
    """All of the text, but for a fence around it, is one object or list of JSON."""
    try:
        value = parse_json(_unfenced(text))
    except ValueError as error:
        return Finding(False, str(error))
    return Finding(isinstance(value, dict | list), f"a JSON {type(value).__name__}")


def json_format_reference(text: str) -> Finding:
    """The same of any value that Python reads: a number, NaN, a string."""
    try:
        value = json.loads(_unfenced(text))
    except (ValueError, RecursionError) as error:
        return Finding(False, str(error))
    return Finding(True, f"a JSON {type(value).__name__}")


def _unfenced(text: str) -> str:
    text = text.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    return text.removesuffix("```").strip()


def constrained_response(text: str) -> Finding:
    """The text says exactly one of the three options."""
    said = [option for option in OPTIONS if option in text]
    return Finding(len(said) == 1, " ".join(said) or "no option")


def constrained_response_reference(text: str) -> Finding:
    """The text says at least one of the three options."""
    said = [option for option in OPTIONS if option in text]
    return Finding(bool(said), " ".join(said) or "no option")
