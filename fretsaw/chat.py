"""Messages <-> token ids: the chat format, and the toggle between reasoning on and off.

The format is Llama 3's, as the Llama-Nemotron v1 models use it: a system turn that begins with the
toggle's line, then the turns, each a header, the text, and an end-of-turn token. Rendering gives
spans of ids with their roles, so what is trained on is known by construction and no text can turn
into a control token. Reasoning stands in the answer itself: `<think>\\n...\\n</think>\\n\\nanswer`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fretsaw.tokenizer import Tokenizer

Mode = Literal["on", "off"]
MODES: tuple[Mode, ...] = ("on", "off")
ROLES = ("system", "user", "assistant")

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"
TOGGLE = "detailed thinking"  # followed by " on" or " off"
HEADER, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
CONTROL_TOKENS = (HEADER, HEADER_END, TURN_END)
_TOGGLE_LINE = re.compile(rf"\b{TOGGLE} (on|off)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Span:
    """Consecutive token ids of one role; a target is what the model learns to write."""

    role: str
    token_ids: tuple[int, ...]
    is_target: bool = False


# --- the toggle and the tags ----------------------------------------------------------------------


def mode_in(text: str) -> Mode | None:
    """Return the mode that a system text asks for, None where it asks for none."""
    found = _TOGGLE_LINE.findall(text)
    return None if not found else "off" if found[-1].lower() == "off" else "on"


def with_toggle(messages: Sequence[Message], mode: Mode) -> list[Message]:
    """Return the messages with a system turn whose first line is the toggle.

    Where the user's own system text names a mode already, the text wins and is left as it is.
    """
    system = next((m.content.strip() for m in messages if m.role == "system"), "")
    if mode_in(system) is None:
        system = f"{TOGGLE} {mode}" + (f"\n\n{system}" if system else "")
    return [Message("system", system), *(m for m in messages if m.role != "system")]


def with_reasoning(reasoning: str, answer: str) -> str:
    """Return an answer as it is written with reasoning on."""
    return f"{OPEN_TAG}\n{reasoning}\n{CLOSE_TAG}\n\n{answer}"


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Return (reasoning, answer), told from the text alone; reasoning is None where none begins.

    Reasoning that is opened and never closed leaves an empty answer.
    """
    text = text.strip()
    if not text.startswith(OPEN_TAG):
        return None, text
    reasoning, _, answer = text.removeprefix(OPEN_TAG).partition(CLOSE_TAG)
    return reasoning.strip(), answer.strip()


def without_reasoning(text: str) -> str:
    """Return an earlier answer as it stands in a history: what follows its last closing tag."""
    return text.rpartition(CLOSE_TAG)[2].lstrip() if CLOSE_TAG in text else text


def format_fault(text: str, mode: Mode) -> str | None:
    """Say what is wrong with an answer's tags, None if nothing is.

    On: it starts with the opening tag, has exactly one pair, and an answer after it. Off: no tags.
    """
    num_open, num_closed = text.count(OPEN_TAG), text.count(CLOSE_TAG)
    if mode == "off":
        return "tags with reasoning off" if num_open or num_closed else None
    if not text.strip().startswith(OPEN_TAG):
        return f"does not start with {OPEN_TAG}"
    if (num_open, num_closed) != (1, 1):
        return f"{num_open} opening and {num_closed} closing tags"
    return None if split_reasoning(text)[1] else "no answer after the reasoning"


# --- rendering ------------------------------------------------------------------------------------


def add_control_tokens(tokenizer: Tokenizer) -> list[str]:
    """Give a tokenizer the tokens of the format that it lacks; return those."""
    missing = [token for token in CONTROL_TOKENS if tokenizer.token_id(token) is None]
    tokenizer.add_special_tokens(missing)
    tokenizer.end_texts_with(TURN_END)
    return missing


def check_tags(tokenizer: Tokenizer) -> None:
    """Raise where a tokenizer cannot write the tags, so that no answer could keep the format."""
    text = with_reasoning("a", "b")
    written = tokenizer.decode(tokenizer.encode(text)).strip()
    if written != text:
        raise ValueError(
            f"chat: the tokenizer reads {text!r} back as {written!r}, so reasoning could not be "
            "told apart; use a checkpoint whose vocabulary has every byte"
        )


def is_chat(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has the tokens of the format."""
    return all(tokenizer.token_id(token) is not None for token in CONTROL_TOKENS)


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message], mode: Mode) -> tuple[int, ...]:
    """Return the ids for the model to go on from: the conversation and the next answer's header."""
    spans = [*render(tokenizer, messages, mode), Span("assistant", _header(tokenizer, "assistant"))]
    return tuple(id for span in spans for id in span.token_ids)


def render(tokenizer: Tokenizer, messages: Sequence[Message], mode: Mode) -> list[Span]:
    """Return a conversation as spans; targets are the answers to learn, their end of turn included.

    Only a last answer keeps its reasoning: earlier ones stand as they do in a history. So with
    reasoning on the last answer alone is a target (the others would teach not to reason), with
    reasoning off every answer is.
    """
    end = _control_id(tokenizer, TURN_END)
    bos = tokenizer.bos_token_id
    spans = [] if bos is None else [Span("system", (bos,))]
    turns = with_toggle(messages, mode)
    for number, message in enumerate(turns):
        if message.role not in ROLES:
            raise ValueError(f"role {message.role!r}: unknown; use {', '.join(ROLES)}")
        is_last, is_answer = number == len(turns) - 1, message.role == "assistant"
        content = message.content.strip()
        if is_answer and not is_last:
            content = without_reasoning(content)
        spans.append(Span(message.role, _header(tokenizer, message.role)))
        ids = (*tokenizer.encode(content), end)
        spans.append(Span(message.role, ids, is_answer and (is_last or mode == "off")))
    return spans


def _header(tokenizer: Tokenizer, role: str) -> tuple[int, ...]:
    start, end = _control_id(tokenizer, HEADER), _control_id(tokenizer, HEADER_END)
    return (start, *tokenizer.encode(role), end, *tokenizer.encode("\n\n"))


def _control_id(tokenizer: Tokenizer, token: str) -> int:
    id = tokenizer.token_id(token)
    if id is None:
        raise ValueError(
            f"chat: the tokenizer has no {token}, so this is no chat model; tune it with "
            "`fretsaw sft` first, or continue plain text with `fretsaw generate`"
        )
    return id
