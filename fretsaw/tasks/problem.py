"""A problem: a question, and what is expected of an answer to it.

A family of problems is a file of this room that makes `Problem`s; users bring their own as JSONL.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fretsaw.chat.message import Message
from fretsaw.chat.toggle import TOGGLES, mode_in
from fretsaw.data.conversation import read_messages
from fretsaw.data.rows import read_objects
from fretsaw.grade.grader import GRADERS, Expectation


class BadOption(ValueError):
    """An option of a task that can't be read."""


@dataclass(frozen=True)
class Problem:
    """A question with what is expected of an answer."""

    id: str
    messages: tuple[Message, ...]
    expected: Expectation  # by the keys that its grader reads
    grader: str = "number"
    kind: str = ""  # what results are broken down by
    text: str | None = None  # the same for a model that only continues text

    @property
    def answer(self) -> str:
        """The expected answer as text, "" where more than an answer is expected."""
        return str(self.expected.get("answer", ""))


def read_problems(path: Path) -> list[Problem]:
    """Read the user's own: `{"prompt" or "messages", "answer", "grader"}` a line.

    `grader` is one of `GRADERS` (number where it is left out), `kind` and `id` are optional. A
    grader that reads more than an answer finds it in `expected`, an object. Raises ValueError with
    file and line for a row that could not be graded.
    """
    return [_problem(row, number, where) for number, (where, row) in enumerate(read_objects(path))]


def _problem(row: Mapping[str, Any], number: int, where: str) -> Problem:
    grader = row.get("grader", "number")
    is_known = isinstance(grader, str) and grader in GRADERS
    keys = GRADERS[grader].keys if is_known else ("answer",)
    expected = _expected(row, keys, where)
    if not is_known:
        raise ValueError(f"{where}: grader is {grader!r}; choose one of {', '.join(GRADERS)}")
    messages = _messages(row, where)
    try:
        GRADERS[grader].load()("", expected)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    kind, id = str(row.get("kind", "")), str(row.get("id", number))
    return Problem(id, messages, expected, grader, kind, row.get("prompt"))


def _expected(row: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Expectation:
    """Return what a row expects, by a grader's keys; a row's `answer` is one of them."""
    given = row.get("expected")
    if keys != ("answer",) and not isinstance(given, Mapping):
        rule = f"write an object with {', '.join(keys)}"
        raise ValueError(f"{where}: expected is {given!r}; {rule}")
    expected = dict(given) if isinstance(given, Mapping) else {}
    if "answer" in keys:
        answer = row.get("answer", expected.get("answer"))
        if isinstance(answer, int | float):
            answer = str(answer)
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{where}: answer is {answer!r}; write the expected answer as text")
        expected["answer"] = answer
    if missing := [key for key in keys if key not in expected]:
        raise ValueError(
            f"{where}: expected has no {missing[0]!r}; its grader reads {', '.join(keys)}"
        )
    return expected


def _messages(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        messages: tuple[Message, ...] = (Message("user", prompt),)
    elif "messages" in row:
        messages = read_messages(row["messages"], where)
    else:
        raise ValueError(f"{where}: prompt is {prompt!r}; write a prompt, or messages")
    if messages[-1].role != "user":
        raise ValueError(f"{where}: the last message is not the user's; end with the question")
    system = messages[0].content if messages[0].role == "system" else ""
    asked = next(filter(None, (mode_in(system, toggle) for toggle in TOGGLES)), None)
    if asked is not None:
        raise ValueError(
            f"{where}: its system text asks for reasoning {asked!r}, but a problem is put in "
            "both modes; leave the toggle out"
        )
    return messages
