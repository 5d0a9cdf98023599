"""Fields of a published row, checked as they are read."""

import math
from collections.abc import Mapping
from typing import Any

from fretsaw.chat.message import Message
from fretsaw.grade.grader import Expectation
from fretsaw.tasks.problem import Problem

Row = Mapping[str, Any]


def text_of(row: Row, where: str, *names: str) -> str:
    """Return the first of some fields that there is, a text that is not blank."""
    name = next((name for name in names if name in row), None)
    if name is None:
        raise ValueError(f"{where}: no field {' or '.join(names)}; give the published file")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {name} is {value!r:.80}; it is text in the published file")
    return value.strip()


def number_of(row: Row, where: str, *names: str) -> str:
    """Return a field that is a number, or one written as text, as it is written."""
    name = next((name for name in names if name in row), None)
    match row[name] if name is not None else None:
        case int() | float() as value if not isinstance(value, bool) and math.isfinite(value):
            return str(int(value)) if float(value).is_integer() else str(value)
    return text_of(row, where, *names)


def texts_of(row: Row, where: str, name: str) -> list[str]:
    """Return a field that is a list of texts, two at least."""
    match row.get(name):
        case [_, _, *_] as texts if all(isinstance(text, str) for text in texts):
            return [text.strip() for text in texts]
        case value:
            raise ValueError(f"{where}: {name} is {value!r:.80}; it is a list of texts")


def asked(
    question: str,
    expected: Expectation,
    grader: str,
    *,
    id: Any,
    where: str,
    kind: str = "",
    text: str | None = None,
) -> Problem:
    """Return a problem of one user's turn; `text` is how a model is asked that only continues."""
    messages = (Message("user", question),)
    return Problem(str(id), messages, expected, grader, kind, text or question, where)
