"""One turn of a conversation, and which may follow which."""

from collections.abc import Sequence
from dataclasses import dataclass

from fretsaw.chat.tools import CALLS, ToolCall

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; an answer's reasoning is its own field or inline in content."""

    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


_AFTER = {  # role -> what may come before it
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def check_roles(messages: Sequence[Message]) -> None:
    """Raise where a conversation is empty, has unknown roles, or has them out of order.

    The system's turn may come first; then the user's and the assistant's take turns. An answer that
    calls tools is followed by their results, and they by an answer.
    """
    if not messages:
        raise ValueError("messages is empty; give at least the user's turn")
    before = None
    for number, message in enumerate(messages):
        role = message.role
        if role not in ROLES:
            raise ValueError(f"messages[{number}]: role {role!r}: unknown; use {', '.join(ROLES)}")
        if (before and before.role) not in _AFTER[role]:
            where = f"comes after the {before.role}'s turn" if before else "comes first"
            raise ValueError(
                f"messages[{number}]: the {role}'s turn {where}; give the system's first if there "
                "is one, then the user's and the assistant's in turn (join two of the same), and "
                "tools' results after the answer that calls them"
            )
        if role == "tool" and before and before.role == "assistant" and not _calls(before):
            raise ValueError(
                f"messages[{number}]: a tool's result after an answer that calls none; give the "
                "answer its tool_calls"
            )
        before = message


def _calls(message: Message) -> bool:
    return bool(message.tool_calls) or CALLS[0] in message.content
