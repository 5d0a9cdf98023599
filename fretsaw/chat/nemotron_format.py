"""The chat format of the Llama-Nemotron models, written by our own renderer."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from fretsaw.chat.control_tokens import TURN_END, control_id
from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import Mode
from fretsaw.chat.render import render
from fretsaw.chat.renderer import ChatFormat, Span, Tools
from fretsaw.chat.toggle import Toggle
from fretsaw.chat.tokenizer import Tokenizer


@dataclass(frozen=True)
class NemotronFormat(ChatFormat):
    """Llama 3's turns with a toggle; needs a tokenizer that has the tokens of the format."""

    tokenizer: Tokenizer
    toggle: Toggle = "v1"

    @property
    def name(self) -> str:
        """What it is, in a few words."""
        return "the Llama-Nemotron format"

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a turn."""
        own = control_id(self.tokenizer, TURN_END)
        return tuple(dict.fromkeys((*self.tokenizer.eos_token_ids, own)))

    def _prompt_ids(self, messages: Sequence[Message], mode: Mode, tools: Tools) -> tuple[int, ...]:
        asking = self.render([*messages, Message("assistant")], mode, tools)[:-1]
        return tuple(id for span in asking for id in span.token_ids)

    def conversation_ids(
        self, messages: Sequence[Message], mode: Mode, tools: Tools = ()
    ) -> tuple[int, ...]:
        """Return the ids of a conversation as it stands."""
        spans = self.render(messages, mode, tools)
        return tuple(id for span in spans for id in span.token_ids)

    def render(
        self,
        messages: Sequence[Message],
        mode: Mode,
        tools: Tools = (),
        unlearnt: Container[int] = (),
    ) -> list[Span]:
        """Return a conversation as spans; see `render`."""
        return render(
            self.tokenizer, messages, mode, toggle=self.toggle, tools=tools, unlearnt=unlearnt
        )

    def opening(self, mode: Mode) -> str:
        """Return nothing: an answer writes its trace itself, and a closed one is none."""
        return ""
