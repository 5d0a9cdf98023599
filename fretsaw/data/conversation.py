"""The turns of a conversation as people write them -> messages; a fault is said with its place.

A turn has a `role` and a `content`, as in OpenAI's API, or `from` and `value`, as in ShareGPT's
files. Its content is text, or a list of text parts; an answer's trace may have a field of its own,
its tool calls are those of OpenAI's API. A field that is null counts as absent, since parquet
writes all fields of all rows. An answer follows what it answers, and a tool's result its call.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fretsaw.chat.message import ROLES, Message, text_of
from fretsaw.chat.reasoning import split_reasoning
from fretsaw.chat.tools import CALLS, ToolCall, read_arguments
from fretsaw.stage.json_text import parse_json

WEIGHTS = ("weight", "loss", "train")  # fields of an answer for whether it is learnt
REASONING = ("reasoning_content", "reasoning", "thinking")  # fields of an answer for its trace
_OTHER_NAMES = {
    "assistant": ("gpt", "chatgpt", "bard", "bing", "claude", "model", "function_call"),
    "user": ("human",),
    "system": ("developer",),
    "tool": ("function", "observation", "ipython"),
}
ROLE_OF = {other: role for role, others in _OTHER_NAMES.items() for other in (role, *others)}


def read_messages(turns: Any, where: str) -> tuple[Message, ...]:
    """Return a row's turns, a list or the JSON of one; raise where one cannot be read."""
    return read_turns(turns, where)[0]


def read_prompt(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """Return what a row asks: its `prompt`, which is text or turns, or its `messages`.

    Both may be there where they do not disagree: a text is one of the user's turns.
    """
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and prompt.strip():
        asked: tuple[Message, ...] = (Message("user", prompt),)
    elif isinstance(prompt, list):
        asked = read_messages(prompt, where)
    elif prompt in (None, "") and messages is not None:
        return read_messages(messages, where)
    else:
        raise ValueError(f"{where}: prompt is {shown(prompt)}; write a prompt, or messages")
    if not messages:
        return asked
    turns = read_messages(messages, where)
    if asked != turns and not (isinstance(prompt, str) and asked[0] in turns):
        raise ValueError(f"{where}: prompt and messages are both there and disagree; keep one")
    return turns


def read_turns(turns: Any, where: str) -> tuple[tuple[Message, ...], frozenset[int]]:
    """Return the messages, and which of them have `weight` 0, so are not to be learnt."""
    turns = read_list(turns, "messages", where)
    if not turns:
        raise ValueError(f"{where}: messages is {turns!r}; write a list of role and content")
    messages, unlearnt = [], set()
    for number, turn in enumerate(turns):
        here = f"{where}: messages[{number}]"
        if not isinstance(turn, Mapping):
            raise ValueError(f"{here} is {shown(turn)}; write an object with role and content")
        message = _message(turn, here)
        if message.role == "system" and number:
            raise ValueError(f"{here} is a system turn; there is one, and it comes first")
        _check_order(messages[-1] if messages else None, message, here)
        messages.append(message)
        if not _is_learnt(turn, message.role, here):
            unlearnt.add(number)
    return tuple(messages), frozenset(unlearnt)


def _check_order(before: Message | None, message: Message, where: str) -> None:
    """Raise for an answer to nothing, and for a tool's result that no call asked for."""
    role = None if before is None else before.role
    place = "comes first" if role is None else f"comes after the {role}'s"
    if message.role == "assistant" and role not in ("user", "tool"):
        raise ValueError(
            f"{where}: the assistant's turn {place}; an answer follows the user's turn or a "
            "tool's result"
        )
    if message.role != "tool" or role == "tool":
        return
    if before is None or role != "assistant":
        raise ValueError(
            f"{where}: the tool's turn {place}; a result follows the answer that calls"
        )
    if not (before.tool_calls or CALLS[0] in before.content):
        raise ValueError(
            f"{where}: a tool's result after an answer that calls none; give the answer its "
            "tool_calls"
        )


def read_tools(row: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    """Return the functions that a row says may be called, as OpenAI's API describes them."""
    tools = read_list(one_of(row, ("tools", "functions"), where) or [], "tools", where)
    for number, tool in enumerate(tools):
        here = f"{where}: tools[{number}]"
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ValueError(
                f'{here} is {shown(tool)}; write {{"function": {{"name": ..., "parameters": ...}}}}'
            )
        _check_json(function, here)
    return tuple(tools)


def read_list(value: Any, name: str, where: str) -> Sequence[Any]:
    """Return a list, or the list that a string says as JSON."""
    if isinstance(value, str) and value.strip():
        value = _json_in(value, f"{where}: {name}")
    if not isinstance(value, list):
        raise ValueError(f"{where}: {name} is {shown(value)}; write a list")
    return value


def one_of(fields: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """Return the value of the one field of these that is there; raise where several disagree."""
    given = {name: fields[name] for name in names if fields.get(name) is not None}
    values = list(given.values())
    if any(value != values[0] for value in values):
        raise ValueError(f"{where}: {' and '.join(given)} are both there and disagree; keep one")
    return values[0] if values else None


def shown(value: Any) -> str:
    """Return a value as a message shows it, not at length."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 100 else f"{text[:90]}... ({len(text)} characters)"


def _message(turn: Mapping[str, Any], where: str) -> Message:
    said = one_of(turn, ("role", "from"), where)
    role = ROLE_OF.get(said) if isinstance(said, str) else None
    if role is None:
        raise ValueError(
            f"{where} is {shown(turn)}; write a role ({', '.join(ROLES)}) and its content as text"
        )
    content = one_of(turn, ("content", "value"), where)
    calls = _calls(turn, where)
    if said == "function_call" and not calls:  # ShareGPT's: the turn's text is the call
        listed = _json_in(content, where) if isinstance(content, str) else content
        listed = listed if isinstance(listed, list) else [listed]
        calls, content = tuple(_call(call, where) for call in listed), ""
    if role != "assistant":
        if calls:
            raise ValueError(f"{where}: the {role}'s turn calls tools; only the assistant's may")
        text = _text("" if content is None and role == "tool" else content, where)
        named = {
            key: turn[key] for key in ("tool_call_id", "name") if isinstance(turn.get(key), str)
        }
        return Message(role, text, **named)
    text = _text("" if content is None and calls else content, where)
    return Message(role, text, _trace(turn, text, where), calls)


def _text(content: Any, where: str) -> str:
    if not isinstance(content, str | list):
        raise ValueError(f"{where}: content is {shown(content)}; write text, or a list of parts")
    try:
        return text_of(content)
    except ValueError as error:
        raise ValueError(f"{where}: content has {error}") from None


def _trace(turn: Mapping[str, Any], text: str, where: str) -> str | None:
    """Return an answer's trace where it has a field of its own; it may stand in the text too."""
    trace = one_of(turn, REASONING, where)
    if trace is None or trace == "":
        return None
    if not isinstance(trace, str):
        raise ValueError(f"{where}: its reasoning is {shown(trace)}; write it as text")
    inline = split_reasoning(text)[0]
    if inline is not None and inline != trace.strip():
        raise ValueError(
            f"{where}: its reasoning stands in a field and in its content, and they disagree; "
            "keep one"
        )
    return trace


def _calls(turn: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    legacy = turn.get("function_call")
    calls = turn.get("tool_calls")
    if calls is None or calls == "":
        calls = [] if legacy is None else [legacy]
    listed = read_list(calls, "tool_calls", where)
    return tuple(_call(call, f"{where}: tool_calls[{i}]") for i, call in enumerate(listed))


def _call(call: Any, where: str) -> ToolCall:
    """Return a call: `{"function": {"name", "arguments"}}`, or the inner object alone."""
    function = call.get("function") or call if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise ValueError(
            f'{where} is {shown(call)}; write {{"function": {{"name": ..., "arguments": ...}}}}'
        )
    given = function.get("arguments")
    try:
        arguments = read_arguments(given)
    except ValueError as error:
        raise ValueError(f"{where}: arguments is {shown(given)}: {error}") from None
    _check_json(arguments, where)
    return ToolCall(name, arguments)


def read_weight(fields: Mapping[str, Any], names: Sequence[str], where: str) -> int | None:
    """Return 0 for what is not to be learnt, 1 for what is, None where the fields do not say."""
    weight = one_of(fields, names, where)
    if weight is None:
        return None
    if not isinstance(weight, int | float) or weight not in (0, 1):
        named = next(name for name in names if fields.get(name) is not None)
        raise ValueError(f"{where}: {named} is {shown(weight)}; write 1, or 0 for not to be learnt")
    return int(weight)


def _is_learnt(turn: Mapping[str, Any], role: str, where: str) -> bool:
    weight = read_weight(turn, WEIGHTS, where)
    if weight and role != "assistant":
        raise ValueError(f"{where}: weight 1 on the {role}'s turn; only answers are learnt")
    return weight != 0


def _json_in(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{where} is {shown(text)}: {error}") from None


def _check_json(value: Any, where: str) -> None:
    """Raise for a value that JSON cannot write; parquet has such, as dates and bytes."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: cannot be written as JSON ({error}); make it text") from None
