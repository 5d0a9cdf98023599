"""Tools as text: listed for the model, called by it, and what they returned.

Tools stand in the system turn as `<AVAILABLE_TOOLS>`, calls in the answer as `<TOOLCALL>`, results
in a turn after it as `<TOOL_RESPONSE>`, each a JSON list. Source: the chat templates of
Llama-3.1-Nemotron-Nano-8B-v1 (results in a user turn each) and Llama-3.3-Nemotron-Super-49B-v1.5
(all results in one tool turn), both also in NVIDIA/Megatron-LM,
megatron/training/tokenizer/multimodal_tokenizer.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fretsaw.chat.reasoning import CLOSE_TAG, OPEN_TAG
from fretsaw.stage.json_text import DECODER, parse_json

TOOLS, CALLS, RESULTS = (
    (f"<{name}>[", f"]</{name}>") for name in ("AVAILABLE_TOOLS", "TOOLCALL", "TOOL_RESPONSE")
)


# v1 was trained to know the format from its tags; the others are told.
TOOLS_INTRODUCTION = "These tools can be called:\n"
TOOLS_INSTRUCTION = (
    f'\n\nCall tools with {CALLS[0]}{{"name": name, "arguments": {{...}}}}, ...{CALLS[1]}. '
    f"What they return follows as {RESULTS[0]}...{RESULTS[1]}."
)


@dataclass(frozen=True)
class ToolCall:
    """A tool the model asks for; `id` is the client's name for the call and is not rendered."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


def calls_text(calls: Sequence[ToolCall]) -> str:
    """Return tool calls as an answer writes them; nothing for none."""
    written = (
        f'{{"name": {to_json(call.name)}, "arguments": {to_json(call.arguments)}}}'
        for call in calls
    )
    return f"{CALLS[0]}{', '.join(written)}{CALLS[1]}" if calls else ""


def parse_tool_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Return (the text without the calls, the calls); what cannot be read as calls stays text.

    Calls are made in the answer: what reasoning drafts, where the text begins with it, is none.
    """
    opening = CALLS[0].removesuffix("[")
    at = answer_start(text)
    kept, calls = text[:at], []
    while (start := text.find(opening, at)) >= 0:
        found = _read_calls(text, start + len(opening))
        end = start + len(opening) if found is None else found[1]
        kept += text[at : end if found is None else start]
        calls += [] if found is None else found[0]
        at = end
    return (kept + text[at:]).strip(), tuple(calls)


def before_calls(text: str) -> str:
    """Return the beginning of a text that will go on, in which no calls can begin any more."""
    opening = CALLS[0].removesuffix("[")
    at = text.find(opening, answer_start(text))
    if at < 0:
        begun = (n for n in range(len(opening) - 1, 0, -1) if text.endswith(opening[:n]))
        at = len(text) - next(begun, 0)
    return text[:at].strip()


def answer_start(text: str) -> int:
    """Return where the answer begins: after the reasoning where the text begins with it."""
    if not text.lstrip().startswith(OPEN_TAG):
        return 0
    at = text.find(CLOSE_TAG)
    return len(text) if at < 0 else at + len(CLOSE_TAG)


def _read_calls(text: str, at: int) -> tuple[list[ToolCall], int] | None:
    """Return the calls that begin there and where their closing tag ends."""
    closing = CALLS[1].removeprefix("]")
    at += len(text[at:]) - len(text[at:].lstrip())
    try:
        listed, end = DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):  # what a model wrote, so nobody's error
        return None
    end += len(text[end:]) - len(text[end:].lstrip())
    calls = [_read_call(call) for call in listed] if isinstance(listed, list) else []
    known = [call for call in calls if call is not None]
    if not known or len(known) < len(calls) or not text.startswith(closing, end):
        return None
    return known, end + len(closing)


def _read_call(call: Any) -> ToolCall | None:
    match call:
        case {"name": str(name), "arguments": given}:
            pass
        case {"name": str(name), **rest} if not rest:  # else they stand under a foreign name
            given = None
        case _:
            return None
    try:
        read = ToolCall(name, read_arguments(given))
        calls_text([read]).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    return read


def read_arguments(given: Any) -> Mapping[str, Any]:
    """Return a call's arguments, given as an object, as its JSON, or not at all (null, blank).

    Raises ValueError for anything else, NaN and numbers beyond a double among it.
    """
    if isinstance(given, str):
        given = parse_json(given) if given.strip() else None
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError("give a JSON object, or one as a string")
    return given


def to_json(value: Any) -> str:
    """Return a value as the format writes it, letters of every script as they are."""
    return json.dumps(value, ensure_ascii=False)
