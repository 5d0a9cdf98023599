"""One turn of a conversation."""

from collections.abc import Sequence
from dataclasses import dataclass

from fretsaw.chat.tools import ToolCall

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; an answer's reasoning is its own field or inline in content."""

    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


def check_roles(messages: Sequence[Message]) -> None:
    """Raise where a conversation is empty or has unknown roles; their order is the client's."""
    if not messages:
        raise ValueError("messages is empty; give at least the user's turn")
    for number, message in enumerate(messages):
        role = message.role
        if role not in ROLES:
            raise ValueError(f"messages[{number}]: role {role!r}: unknown; use {', '.join(ROLES)}")
