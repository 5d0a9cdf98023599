"""Files of conversations -> records to tune on; what is wrong with a row is said with its line.

A row is recognised by its fields:

- ours: `{"messages": [{"role", "content"}, ...], "mode": "on" | "off"}`; other fields are passed
  over;
- the Llama-Nemotron post-training record: `input`, `output`, `reasoning`, `system_prompt`;
- GSM8K's: `question`, `answer`, whose worked text before `####` becomes the reasoning. It makes two
  records, one of each mode.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fretsaw.chat.message import ROLES, Message, check_roles
from fretsaw.chat.reasoning import MODES, Mode, format_fault, with_reasoning
from fretsaw.chat.toggle import mode_in
from fretsaw.data.sources import read_objects

_CALCULATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator annotations


@dataclass(frozen=True)
class Record:
    """One conversation that ends with the answer to learn."""

    messages: tuple[Message, ...]
    mode: Mode
    where: str  # file and line, for messages


def read_records(sources: Sequence[str]) -> Iterator[Record]:
    """Yield the records of .jsonl and .parquet files, in order.

    Raises ValueError with file and line for a row that cannot be learnt from.
    """
    for source in sources:
        for where, row in read_objects(Path(source)):
            yield from records_of(row, where)


def records_of(row: Mapping[str, Any], where: str) -> Iterator[Record]:
    """Yield what one row says."""
    if "messages" in row:
        mode = row.get("mode")
        if mode not in MODES:
            raise ValueError(f'{where}: mode is {mode!r}; write "mode": "on" or "off"')
        yield check(Record(read_messages(row["messages"], where), mode, where))
    elif "input" in row and "output" in row:
        turns = row["input"]
        if isinstance(turns, str):
            turns = [{"role": "user", "content": turns}]
        system = row.get("system_prompt") or ""
        said = row.get("reasoning") or mode_in(system)
        if said not in MODES:
            raise ValueError(f'{where}: reasoning is {said!r}; write "reasoning": "on" or "off"')
        before = [{"role": "system", "content": system}] if system else []
        answer = {"role": "assistant", "content": row["output"]}
        yield check(Record(read_messages([*before, *turns, answer], where), said, where))
    elif "question" in row and "answer" in row:
        yield from _gsm8k(row, where)
    else:
        found = ", ".join(map(repr, row)) or "none"
        raise ValueError(
            f"{where}: fields {found} are no conversation; write messages and mode, or the fields "
            "of the Llama-Nemotron record (input, output, reasoning) or of GSM8K (question, answer)"
        )


def read_messages(turns: Any, where: str) -> tuple[Message, ...]:
    """Return a row's turns; raise where one is not {"role", "content"} with text in it."""
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: messages is {turns!r}; write a list of role and content")
    messages = []
    for number, turn in enumerate(turns):
        role = turn.get("role") if isinstance(turn, Mapping) else None
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f"{where}: messages[{number}] is {turn!r}; write a role ({', '.join(ROLES)}) and "
                "its content as text"
            )
        if role == "system" and number:
            raise ValueError(
                f"{where}: messages[{number}] is a system turn; there is one, and it comes first"
            )
        messages.append(Message(role, content))
    return tuple(messages)


def check(record: Record) -> Record:
    """Return the record; raise where it has no answer, or one that contradicts its mode."""
    where, last = record.where, record.messages[-1]
    if last.role != "assistant" or not last.content.strip():
        raise ValueError(f"{where}: no answer; end messages with the assistant's, or drop the row")
    if not any(message.role == "user" for message in record.messages):
        raise ValueError(f"{where}: no question; write the user's turn before the answer")
    try:
        check_roles(record.messages)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    system = next((m.content for m in record.messages if m.role == "system"), "")
    if mode_in(system) not in (None, record.mode):
        raise ValueError(
            f"{where}: mode is {record.mode!r}, but its system text asks for {mode_in(system)!r}; "
            "make them agree"
        )
    fault = format_fault(last.content, record.mode)
    if fault:
        raise ValueError(
            f"{where}: mode {record.mode}, but its answer is malformed ({fault}); with reasoning "
            "on write <think>, reasoning, </think>, answer; with reasoning off no tags"
        )
    return record


def _gsm8k(row: Mapping[str, Any], where: str) -> Iterator[Record]:
    worked, mark, answer = str(row["answer"]).rpartition("####")
    if not mark or not answer.strip():
        raise ValueError(f"{where}: no answer after '####'; end the worked text with '#### answer'")
    question = Message("user", str(row["question"]))
    reasoning = _CALCULATION.sub("", worked).strip()
    texts: dict[Mode, str] = {
        "on": with_reasoning(reasoning, answer.strip()),
        "off": answer.strip(),
    }
    for mode, text in texts.items():
        yield check(Record((question, Message("assistant", text)), mode, where))
