"""BFCL: function calls, one or several, or none where no function fits (Berkeley, Gorilla)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fretsaw.chat.message import Message
from fretsaw.chat.tools import to_json
from fretsaw.data.rows import Row
from fretsaw.data.text_files import read_lines
from fretsaw.grade.calls import ANY
from fretsaw.grade.grader import GRADERS
from fretsaw.stage.json_text import parse_json
from fretsaw.tasks.fields import text_of
from fretsaw.tasks.problem import Problem

# After the model cards of Llama-Nemotron Super and Ultra.
PROMPT = """\
You are an expert in composing functions. You are given a question and functions that may be \
called. Make the one or more calls that it takes. Where no function fits, or the question lacks a \
parameter that is required, say so. Otherwise answer with the calls alone, no other text, as \
<TOOLCALL>[func_name1(params_name1=params_value1, params_name2=params_value2...), \
func_name2(params)]</TOOLCALL>.

Here is a list of functions in JSON format that you can invoke.
<AVAILABLE_TOOLS>{functions}</AVAILABLE_TOOLS>
{question}"""
_NAME = re.compile(r"(?:BFCL_v\d+_)?(\w+)")


def read(path: Path) -> list[Problem]:
    """Read a file of one category, with its answers in `possible_answer/` beside it.

    Rows are `id`, `question` (one turn of messages) and `function`. The categories of (ir)relevance
    have no answers: some call must be made, or none. Raises ValueError for those of several turns
    and of other languages than Python.
    """
    name = _NAME.fullmatch(path.stem)
    kind = name[1] if name else path.stem
    answers = None if "relevance" in kind else _answers(path.parent / "possible_answer" / path.name)
    problems = []
    for where, row in _rows(path):
        id = text_of(row, where, "id")
        if answers is not None and id not in answers:
            raise ValueError(f"{where}: {id!r} has no possible answer; take both files from one")
        calls = answers[id] if answers is not None else [] if "irrelevance" in kind else ANY
        expected = {"calls": calls, "functions": _field(row, where, "function")}
        try:
            GRADERS["calls"].check(expected)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        messages = _messages(row, where)
        problems.append(Problem(id, messages, expected, "calls", kind, where=where))
    return problems


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) of a file that has one object a line, though its name ends in .json."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; its answers are in possible_answer/")
    for where, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; give the published file") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: no object; give the published file")
        yield where, row


def _field(row: Row, where: str, name: str) -> Any:
    if name not in row:
        raise ValueError(f"{where}: no field {name}; give the published file")
    return row[name]


def _answers(path: Path) -> dict[str, Any]:
    return {
        text_of(row, where, "id"): _field(row, where, "ground_truth") for where, row in _rows(path)
    }


def _messages(row: Any, where: str) -> tuple[Message, ...]:
    match _field(row, where, "question"):
        case [[*turns, {"role": "user", "content": str(question)}]]:
            pass
        case _:
            raise ValueError(f"{where}: question has not one turn that ends with the user's")
    system = [Message(turn["role"], turn["content"]) for turn in turns]
    text = PROMPT.format(functions=to_json(row["function"]), question=question)
    return (*system, Message("user", text))
