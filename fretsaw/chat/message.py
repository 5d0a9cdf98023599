"""One turn of a conversation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fretsaw.chat.tools import ToolCall

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; an answer's reasoning is its own field or inline in content.

    A tool's result may say which call it answers and which tool it is of; some templates write it.
    """

    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


def check_roles(messages: Sequence[Message]) -> None:
    """Raise where a conversation is empty or has unknown roles.

    Their order is the client's: what a template can render is served. Rows have a stricter rule.
    """
    if not messages:
        raise ValueError("messages is empty; give at least the user's turn")
    for number, message in enumerate(messages):
        role = message.role
        if role not in ROLES:
            raise ValueError(f"messages[{number}]: role {role!r}: unknown; use {', '.join(ROLES)}")


def text_of(content: Any) -> str:
    """Return a turn's text, which may be written as a list of text parts; raise for other parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("give a string or a list of text parts")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f"a part of type {kind!r:.60}: only text is read; "
                'give {"type": "text", "text": "..."}'
            )
    return "".join(part["text"] for part in content)
