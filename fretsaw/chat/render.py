"""Messages <-> token ids, in the chat format of Llama 3 as the Llama-Nemotron models use it.

Turns are each a header, the text, and an end-of-turn token. Rendering gives spans of ids with their
roles, so what is trained on is known by construction and no text can turn into a control token: the
loss mask is `Span.is_target`. `llama3_template.py` says the same in Jinja, id for id.
"""

from collections.abc import Container, Mapping, Sequence
from itertools import groupby
from typing import Any

from fretsaw.chat.control_tokens import HEADER, HEADER_END, TURN_END, control_id
from fretsaw.chat.message import Message, check_roles
from fretsaw.chat.parts import answer_parts
from fretsaw.chat.reasoning import (
    CLOSE_TAG,
    NO_REASONING,
    OPEN_TAG,
    Mode,
    format_fault,
    with_reasoning,
    without_reasoning,
)
from fretsaw.chat.renderer import Span
from fretsaw.chat.toggle import TOGGLE, Toggle, mode_in, without_flags, without_lines
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.chat.tools import (
    RESULTS,
    TOOLS,
    TOOLS_INSTRUCTION,
    TOOLS_INTRODUCTION,
    calls_text,
    to_json,
)


def system_text(
    own: str, mode: Mode, *, toggle: Toggle = "v1", tools: Sequence[Mapping[str, Any]] = ()
) -> str | None:
    """Return what the system turn says, None where there is none; `own` is the user's text.

    Where the user's own text names a mode, the text wins; the line comes first, spelt as trained.
    """
    own = own.strip()
    listed = ", ".join(to_json(tool.get("function", tool)) for tool in tools)
    listed = f"{TOOLS[0]}{listed}{TOOLS[1]}"
    if toggle != "v1":
        listed = f"{TOOLS_INTRODUCTION}{listed}{TOOLS_INSTRUCTION}"
    if toggle == "v1.5":
        # The published template ends a system text with a blank line, and always has the turn.
        before = f"{without_flags(own)}\n\n" if own or mode == "off" else ""
        return before + (listed if tools else "")
    parts = []
    if toggle == "v1":
        parts, own = [f"{TOGGLE} {mode_in(own) or mode}"], without_lines(own)
    parts += [own] if own else []
    parts += [listed] if tools else []
    return "\n\n".join(parts) or None


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    mode: Mode,
    *,
    toggle: Toggle = "v1",
    tools: Sequence[Mapping[str, Any]] = (),
    unlearnt: Container[int] = (),
) -> list[Span]:
    """Return a conversation as spans; targets are the answers to learn, their end of turn included.

    `tools` are the functions that may be called, as OpenAI's API describes them. A mode named by
    the system text wins, where that turn comes first; a later one is written as it stands. Only a
    last answer keeps its reasoning: earlier ones stand as they do in a history. So with reasoning
    on the last answer alone is a target (the others would teach not to reason); with reasoning off
    every answer is, but for v1.5, whose history lacks the empty traces. Never a target are the
    messages numbered by `unlearnt`, and an earlier answer that is empty or was cut in its trace.
    """
    check_roles(messages)
    own = messages[0].content if messages[0].role == "system" else ""
    turns = messages[1:] if messages[0].role == "system" else messages
    mode = mode_in(own, toggle) or mode
    is_history_learnt = mode == "off" and toggle != "v1.5"
    answers = (number for number, message in enumerate(messages) if message.role == "assistant")
    spans = [] if tokenizer.bos_token_id is None else [Span("system", (tokenizer.bos_token_id,))]
    system = system_text(own, mode, toggle=toggle, tools=tools)
    if system is not None:
        spans.append(_turn(tokenizer, "system", system))
    turns = _with_results(turns, toggle)
    for number, message in enumerate(turns, 1):
        if message.role != "assistant":
            spans.append(_turn(tokenizer, message.role, message.content.strip()))
            continue
        is_target = next(answers) not in unlearnt
        if number < len(turns):
            text = without_reasoning(message.content) + calls_text(message.tool_calls)
            is_target &= is_history_learnt and _is_whole(message)
            spans += _answer(tokenizer, text, message, is_target=is_target)
        else:
            text = answer_text(message)
            is_opened = toggle == "v1.5" and mode == "off" and not text.startswith(OPEN_TAG)
            opening = NO_REASONING if is_opened else ""
            spans += _answer(tokenizer, text, message, opening=opening, is_target=is_target)
    return spans


def _with_results(turns: Sequence[Message], toggle: Toggle) -> list[Message]:
    """Return the turns with results written out: in v1 a user turn each, else one for all."""
    written: list[Message] = []
    for is_result, run in groupby(turns, lambda message: message.role == "tool"):
        if not is_result:
            written += run
            continue
        results = [message.content.strip() for message in run]
        role = "user" if toggle == "v1" else "tool"
        texts = results if toggle == "v1" else [", ".join(results)]
        written += [Message(role, f"{RESULTS[0]}{text}{RESULTS[1]}") for text in texts]
    return written


def _is_whole(message: Message) -> bool:
    """Whether an earlier answer says something, and nothing of it is a trace that never ended."""
    left = (
        message.content if CLOSE_TAG not in message.content else without_reasoning(message.content)
    )
    return bool(left.strip() or message.tool_calls) and format_fault(left, "off") is None


def answer_text(message: Message) -> str:
    """Return a last answer as it is written: with its reasoning and its calls."""
    reasoning, calls = (message.reasoning or "").strip(), calls_text(message.tool_calls)
    if not reasoning:
        return message.content.strip() + calls
    return with_reasoning(reasoning, without_reasoning(message.content) + calls)


def _turn(tokenizer: Tokenizer, role: str, text: str) -> Span:
    ids = tokenizer.encode(f"\n\n{text}")
    return Span(role, (*_header(tokenizer, role), *ids, control_id(tokenizer, TURN_END)))


def _answer(
    tokenizer: Tokenizer,
    text: str,
    message: Message,
    *,
    opening: str = "",
    is_target: bool = True,
) -> list[Span]:
    """Return an answer's header and the answer: its ids as they go on from the header's.

    They are those of one text where the tokenizer splits before the answer, as Llama 3's does.
    """
    before = tokenizer.encode(f"\n\n{opening}")
    ids = tokenizer.encode(f"\n\n{opening}{text}")
    ids = ids[len(before) :] if ids[: len(before)] == before else tokenizer.encode(text)
    written = (*ids, control_id(tokenizer, TURN_END))
    parts = answer_parts(tokenizer, written, message) if is_target else ()
    return [
        Span("assistant", (*_header(tokenizer, "assistant"), *before)),
        Span("assistant", written, is_target, *parts),
    ]


def _header(tokenizer: Tokenizer, role: str) -> tuple[int, ...]:
    start, end = control_id(tokenizer, HEADER), control_id(tokenizer, HEADER_END)
    return (start, *tokenizer.encode(role), end)
