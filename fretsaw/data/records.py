"""Files of conversations -> records to tune on; what is wrong with a row is said with its line.

A row is recognised by its fields (`KINDS`, a table in docs/sft.md). Any row may also have `mode`,
`system` (or `system_prompt`) and `tools`; other fields are passed over. A mode that the row does
not say is the one that its system text asks for; else it is on where the answer has a trace.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import MODES, OPEN_TAG, Mode, format_fault, with_reasoning
from fretsaw.chat.render import answer_text
from fretsaw.chat.toggle import Toggle, mode_in, without_lines
from fretsaw.chat.tools import CALLS
from fretsaw.data.conversation import (
    REASONING,
    one_of,
    read_list,
    read_tools,
    read_turns,
    read_weight,
    shown,
)
from fretsaw.data.rows import read_objects

_CALCULATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator annotations
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One conversation that ends with the answer to learn."""

    messages: tuple[Message, ...]
    mode: Mode
    where: str  # file and line, for messages
    tools: tuple[Mapping[str, Any], ...] = ()  # that may be called
    unlearnt: frozenset[int] = frozenset()  # answers that are not to be learnt, by their place
    kind: str = "generated"  # of its row
    source: str = "generated"  # its file's name, for figures


@dataclass(frozen=True)
class _Draft:
    """What a kind of row says: its turns as they are written, and what it alone knows."""

    turns: Any
    num_given: int = 0  # turns that are a prompt, so no answer among them is learnt
    mode: Any = None
    system: Any = None


def read_records(sources: Sequence[str], toggle: Toggle = "v1") -> Iterator[Record]:
    """Yield the records of .jsonl, .json and .parquet files, in order; `toggle` is the model's.

    Raises ValueError with file and line for a row that cannot be learnt from.
    """
    for source in sources:
        for where, row in read_objects(Path(source)):
            yield from records_of(row, where, toggle)


def records_of(row: Row, where: str, toggle: Toggle = "v1") -> Iterator[Record]:
    """Yield what one row says."""
    row = {name: value for name, value in row.items() if value is not None}
    kinds = _kinds_in(row)
    if not kinds:
        found = ", ".join(map(shown, row)) or "none"
        raise ValueError(
            f"{where}: fields {found} are no conversation; rows have the fields of one of these "
            f"kinds: {'; '.join(KINDS)}"
        )
    of_kinds = [
        [_record(draft, row, where, toggle, kind) for draft in KINDS[kind](row, where, toggle)]
        for kind in kinds
    ]
    said = [[(record.messages, record.mode) for record in records] for records in of_kinds]
    if any(one != said[0] for one in said):
        raise ValueError(f"{where}: {' and '.join(kinds)} are both there and disagree; keep one")
    for record in of_kinds[0]:
        yield check(record, toggle)


def check(record: Record, toggle: Toggle = "v1") -> Record:
    """Return the record; raise where it has no answer, or one that contradicts its mode."""
    where, last = record.where, record.messages[-1]
    if last.role != "assistant" or not (last.content.strip() or last.tool_calls):
        raise ValueError(f"{where}: no answer; end messages with the assistant's, or drop the row")
    if not any(message.role == "user" for message in record.messages):
        raise ValueError(f"{where}: no question; write the user's turn before the answer")
    asked = mode_in(_system_of(record.messages), toggle)
    if asked not in (None, record.mode):
        raise ValueError(
            f"{where}: mode is {record.mode!r}, but its system text asks for {asked!r}; "
            "make them agree"
        )
    # Of calls it counts only that they are there: tags in their arguments are text.
    text = answer_text(replace(last, tool_calls=())) + (CALLS[0] if last.tool_calls else "")
    fault = format_fault(text, record.mode)
    if fault:
        raise ValueError(
            f"{where}: mode {record.mode}, but its answer is malformed ({fault}); with reasoning "
            "on write <think>, reasoning, </think>, answer; with reasoning off no tags"
        )
    return record


def _record(draft: _Draft, row: Row, where: str, toggle: Toggle, kind: str) -> Record:
    messages, unlearnt = read_turns(draft.turns, where)
    is_learnt = read_weight(row, ("weight",), where) != 0
    unlearnt |= frozenset(range(draft.num_given if is_learnt else len(messages)))
    system = draft.system
    if system is None:
        system = one_of(row, ("system", "system_prompt"), where)
    if not isinstance(system, str | None):
        raise ValueError(f"{where}: system is {shown(system)}; write it as text")
    if system and system.strip():
        if messages[0].role != "system":
            messages = (Message("system", system), *messages)
            unlearnt = frozenset(number + 1 for number in unlearnt)
        elif messages[0].content.strip() != system.strip():
            raise ValueError(f"{where}: two system texts that disagree; keep one")
    if messages[-1].role == "assistant":
        messages = _up_to_the_last_learnt(messages, unlearnt, where)
    mode = draft.mode or row.get("mode")
    if mode is None or mode == "":
        mode = mode_in(_system_of(messages), toggle)
    if mode is None:
        mode = "on" if answer_text(messages[-1]).startswith(OPEN_TAG) else "off"
    if mode not in MODES:
        raise ValueError(f'{where}: mode is {shown(mode)}; write "mode": "on" or "off"')
    return Record(messages, mode, where, read_tools(row, where), unlearnt, kind)


def _up_to_the_last_learnt(
    messages: tuple[Message, ...], unlearnt: frozenset[int], where: str
) -> tuple[Message, ...]:
    """Leave out what follows the last answer to learn: nothing in it teaches."""
    for number in reversed(range(len(messages))):
        if messages[number].role == "assistant" and number not in unlearnt:
            return messages[: number + 1]
    raise ValueError(f"{where}: every answer has weight 0, so nothing is learnt; drop the row")


def _system_of(messages: Sequence[Message]) -> str:
    return messages[0].content if messages[0].role == "system" else ""


# --- kinds of rows --------------------------------------------------------------------------------


def _messages(row: Row, where: str, toggle: Toggle) -> list[_Draft]:
    return [_Draft(row["messages"])]


def _conversations(row: Row, where: str, toggle: Toggle) -> list[_Draft]:
    return [_Draft(row["conversations"])]


def _prompt(row: Row, where: str, toggle: Toggle) -> list[_Draft]:
    """Each is text, or a list of turns; what stands in the prompt is not learnt."""
    prompt = row["prompt"]
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answered = row["completion"]
    turns = [_answer(row, answered)] if isinstance(answered, str) else answered
    given, turns = read_list(given, "prompt", where), read_list(turns, "completion", where)
    return [_Draft([*given, *turns], len(given))]


def _instruction(row: Row, where: str, toggle: Toggle) -> list[_Draft]:
    asked, more = row["instruction"], row.get("input") or ""
    if not isinstance(asked, str) or not isinstance(more, str):
        raise ValueError(f"{where}: instruction and input are no text; write them as text")
    question = f"{asked}\n\n{more}" if more.strip() else asked
    answer = _answer(row, one_of(row, ("output", "response"), where))
    turns = []
    for pair in read_list(row.get("history") or [], "history", where):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{where}: history has {shown(pair)}; write pairs of question, answer")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [_Draft([*turns, {"role": "user", "content": question}, answer])]


def _question(row: Row, where: str, toggle: Toggle) -> list[_Draft]:
    question = row.get("prompt", row.get("question"))
    return [_Draft([{"role": "user", "content": question}, _answer(row, row["response"])])]


def _answer(row: Row, content: Any) -> dict[str, Any]:
    """Return an answer's turn; a row of one question and answer may hold the trace beside them."""
    traces = {name: row[name] for name in REASONING if row.get(name) not in (None, *MODES)}
    return {"role": "assistant", "content": content, **traces}


def _post_training(row: Row, where: str, toggle: Toggle) -> list[_Draft]:
    """The published record: its system text has v1's line, which says its mode."""
    turns, system = row["input"], row.get("system_prompt") or ""
    given = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
    asked = mode_in(system, "v1") if isinstance(system, str) else None
    said = row.get("reasoning") or asked
    if said not in MODES:
        raise ValueError(f'{where}: reasoning is {shown(said)}; write "reasoning": "on" or "off"')
    if row.get("mode", said) != said:
        raise ValueError(f"{where}: mode is {shown(row['mode'])}, but reasoning {said!r}; keep one")
    if asked not in (None, said):
        raise ValueError(
            f"{where}: reasoning is {said!r}, but its system text asks for {asked!r}; "
            "make them agree"
        )
    if toggle != "v1" and isinstance(system, str):
        system = without_lines(system)  # a model of another toggle is told in its own way
    answer = {"role": "assistant", "content": row["output"]}
    return [_Draft([*read_list(given, "input", where), answer], mode=said, system=system)]


def _gsm8k(row: Row, where: str, toggle: Toggle) -> list[_Draft]:
    worked, mark, answer = str(row["answer"]).rpartition("####")
    if not mark or not answer.strip():
        raise ValueError(f"{where}: no answer after '####'; end the worked text with '#### answer'")
    question = {"role": "user", "content": row["question"]}
    reasoning = _CALCULATION.sub("", worked).strip()
    texts = {"on": with_reasoning(reasoning, answer.strip()), "off": answer.strip()}
    return [
        _Draft([question, {"role": "assistant", "content": text}], mode=mode)
        for mode, text in texts.items()
        if row.get("mode", mode) == mode
    ]


KINDS: dict[str, Callable[[Row, str, Toggle], list[_Draft]]] = {
    "messages": _messages,
    "conversations": _conversations,
    "prompt, completion": _prompt,
    "instruction, output": _instruction,
    "instruction, response": _instruction,
    "prompt, response": _question,
    "question, response": _question,
    "input, output": _post_training,
    "question, answer": _gsm8k,
}


def _kinds_in(row: Row) -> list[str]:
    """Return the kinds whose fields a row has; those with nothing in them only if it is alone.

    Beside another kind `answer` is what the question expects, and `input` more of an instruction.
    """
    named = {kind: kind.split(", ") for kind in KINDS}
    there = [kind for kind, fields in named.items() if all(field in row for field in fields)]
    filled = [kind for kind in there if any(row[field] not in ("", []) for field in named[kind])]
    kinds = filled or there[:1]
    if any("instruction" in kind for kind in kinds):
        kinds = [kind for kind in kinds if kind != "input, output"]
    return kinds if len(kinds) == 1 else [kind for kind in kinds if kind != "question, answer"]
