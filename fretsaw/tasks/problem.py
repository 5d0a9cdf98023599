"""A problem: a question, and what is expected of an answer to it.

A family of problems is a file of this room that makes `Problem`s; users bring their own as JSONL.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fretsaw.chat.message import Message
from fretsaw.data.conversation import read_prompt
from fretsaw.data.rows import read_objects
from fretsaw.grade.grader import GRADERS, Expectation, Grader


class BadOption(ValueError):
    """An option of a task that can't be read."""


class TooFew(ValueError):
    """A task has not as many different problems as were asked for; says how many."""


@dataclass(frozen=True)
class Problem:
    """A question with what is expected of an answer."""

    id: str
    messages: tuple[Message, ...]
    expected: Expectation  # by the keys that its grader reads
    grader: str = "number"
    kind: str = ""  # what results are broken down by
    text: str | None = None  # the same for a model that only continues text
    where: str = ""  # file and line, for messages
    then: "Problem | None" = None  # what is asked next, after the answer

    def followed(self, answer: str) -> "Problem | None":
        """Return what is asked next, with the conversation before it.

        What a judge reads of the answer is the field `answer_1`.
        """
        if self.then is None:
            return None
        before = (*self.messages, Message("assistant", answer))
        fields = {**self.then.expected.get("fields", {}), "answer_1": answer}
        return replace(
            self.then,
            messages=(*before, *self.then.messages),
            expected={**self.then.expected, "fields": fields},
        )

    @property
    def answer(self) -> str:
        """The expected answer as text, "" where more than an answer is expected."""
        return str(self.expected.get("answer", ""))


def read_problems(path: Path) -> list[Problem]:
    """Read the user's own: `{"prompt" or "messages", "answer", "grader"}` a line.

    `grader` is one of `GRADERS` (number where it is left out), `kind` and `id` are optional. A
    grader that reads more than an answer finds it in `expected`, an object. Raises ValueError with
    file and line for a row that could not be graded, or whose `id` another row has.
    """
    problems: list[Problem] = []
    named: dict[str, str] = {}
    for number, (where, row) in enumerate(read_objects(path)):
        problem = _problem(row, number, where)
        if problem.id in named:
            raise ValueError(
                f"{where}: id is {problem.id!r}, as on {named[problem.id]}; "
                "give each row its own, or none to any"
            )
        named[problem.id] = where.rpartition(", ")[2]
        problems.append(problem)
    return problems


def _problem(row: Mapping[str, Any], number: int, where: str) -> Problem:
    grader = row.get("grader", "number")
    is_known = isinstance(grader, str) and grader in GRADERS
    if not is_known:
        raise ValueError(f"{where}: grader is {grader!r}; choose one of {', '.join(GRADERS)}")
    expected = _expected(row, GRADERS[grader], where)
    messages = _messages(row, where)
    if GRADERS[grader].is_judged:
        expected = {"question": messages[-1].content, **expected}
    try:
        GRADERS[grader].check(expected)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    kind, id = _label(row, "kind", "", where), _label(row, "id", str(number), where)
    prompt = row.get("prompt")
    text = prompt if _is_text(prompt) else None
    return Problem(id, messages, expected, grader, kind, text, where)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _label(row: Mapping[str, Any], name: str, default: str, where: str) -> str:
    """Return an optional name, written as text or as a whole number; null is none."""
    match row.get(name):
        case None:
            return default
        case str() | int() as label if not isinstance(label, bool):
            return str(label)
        case other:
            raise ValueError(f"{where}: {name} is {other!r}; write text, or leave it out")


def _expected(row: Mapping[str, Any], grader: Grader, where: str) -> Expectation:
    """Return what a row expects, by a grader's keys; `answer` may stand in the row itself."""
    keys, given = grader.keys, row.get("expected")
    if keys and keys != ("answer",) and not isinstance(given, Mapping):
        rule = f"write an object with {', '.join(keys)}"
        raise ValueError(f"{where}: expected is {given!r}; {rule}")
    expected = dict(given) if isinstance(given, Mapping) else {}
    if "answer" in keys:
        expected["answer"] = _answer(row.get("answer", expected.get("answer")), where)
    if missing := [key for key in keys if key not in expected]:
        raise ValueError(
            f"{where}: expected has no {missing[0]!r}; its grader reads {', '.join(keys)}"
        )
    beside = {key: row[key] for key in grader.optional if row.get(key) is not None}
    return expected | beside


def _answer(answer: Any, where: str) -> str:
    """Return the expected answer as text; a number may be written as one."""
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
    if is_number and math.isfinite(answer):
        return str(answer)
    if not isinstance(answer, str) or not _is_text(answer):
        raise ValueError(f"{where}: answer is {answer!r}; write the expected answer as text")
    return answer


def _messages(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    messages = read_prompt(row, where)
    if messages[-1].role != "user":
        raise ValueError(f"{where}: the last message is not the user's; end with the question")
    if not messages[-1].content.strip():
        raise ValueError(f"{where}: the question is blank; write it")
    return messages
