"""What every chat format can do: conversations to token ids, and which of them are learnt."""

from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fretsaw.chat.message import Message, check_roles
from fretsaw.chat.reasoning import MODES, Mode
from fretsaw.chat.toggle import Toggle, mode_in
from fretsaw.chat.tokenizer import Tokenizer

Kind = Literal["prompt", "thinking", "answer", "calls"]
Tools = Sequence[Mapping[str, Any]]  # functions that may be called, as OpenAI's API describes them


@dataclass(frozen=True)
class Span:
    """Consecutive token ids of one role; a target is what the model learns to write."""

    role: str
    token_ids: tuple[int, ...]
    is_target: bool = False
    num_thinking: int = 0  # of a target's tokens, at its beginning, those of the trace
    num_calls: int = 0  # those that call tools, before the last, which ends the turn

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What every token is: one of the prompt, or of a target's trace, text or calls."""
        if not self.is_target:
            return ("prompt",) * len(self.token_ids)
        calls_end = len(self.token_ids) - 1
        calls = range(calls_end - self.num_calls, calls_end)
        return tuple(
            "thinking" if at < self.num_thinking else "calls" if at in calls else "answer"
            for at in range(len(self.token_ids))
        )


class ChatFormat(ABC):
    """How one checkpoint's conversations are written.

    `toggle` is how it is told the mode, `ends` are the ids that end a turn or a text, the
    tokenizer's own first, and `name` says in a few words what it is.
    """

    tokenizer: Tokenizer
    toggle: Toggle
    name: str
    ends: tuple[int, ...]

    def prompt_ids(
        self, messages: Sequence[Message], mode: Mode, tools: Tools = ()
    ) -> tuple[int, ...]:
        """Return the ids for the model to go on from: the conversation and what asks for an answer.

        Raises ValueError where there is nothing to answer, where roles are unknown, and where the
        format refuses the conversation.
        """
        check_roles(messages)
        if messages[-1].role == "assistant":
            raise ValueError(
                "messages: the last is the assistant's, so there is nothing to answer; end with "
                "the user's turn or a tool's result"
            )
        return self._prompt_ids(messages, mode, tools)

    @abstractmethod
    def _prompt_ids(
        self, messages: Sequence[Message], mode: Mode, tools: Tools
    ) -> tuple[int, ...]: ...

    @abstractmethod
    def conversation_ids(
        self, messages: Sequence[Message], mode: Mode, tools: Tools = ()
    ) -> tuple[int, ...]:
        """Return the ids of a conversation as it stands, asking for nothing."""

    @abstractmethod
    def render(
        self,
        messages: Sequence[Message],
        mode: Mode,
        tools: Tools = (),
        unlearnt: Container[int] = (),
    ) -> list[Span]:
        """Return a conversation as spans; targets are the answers to learn, their ends included.

        With reasoning on the last answer alone is learnt, and never those that `unlearnt` numbers.
        Raises ValueError where the format can't be learnt from.
        """

    @abstractmethod
    def opening(self, mode: Mode) -> str:
        """Return what a prompt itself begins the answer with: an opened trace, else nothing."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes it can be asked for; without a switch the one that it is always in."""
        if self.toggle != "none":
            return MODES
        return ("on",) if self.opening("on") else ("off",)

    def mode_in(self, system_text: str) -> Mode | None:
        """Return the mode that a system text asks for, None where it asks for none."""
        return mode_in(system_text, self.toggle)
