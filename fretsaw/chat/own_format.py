"""A checkpoint's own chat format, as its template writes it: for prompts, and with a loss mask.

What is learnt follows from rendering beginnings of a conversation: an answer is what stands after
the text that asks for it, up to the token that ends its turn. A template that does not write an
answer after that text, as it stood, can't be learnt from and says so; it can still be served.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from fretsaw.chat.jinja_template import ChatTemplate
from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import CLOSE_TAG, OPEN_TAG, Mode, with_reasoning
from fretsaw.chat.render import Span
from fretsaw.chat.rendered_text import RenderedText
from fretsaw.chat.tokenizer import Tokenizer

_THINKING = ("enable_thinking", "thinking")  # what templates call the switch
_REASONING = ("reasoning_content", "reasoning", "thinking")  # and a turn's reasoning


class OwnFormat:
    """Renders conversations by a checkpoint's template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        templates: Mapping[str, str],
        *,
        variables: Mapping[str, Any],
        where: str = "chat template",
    ):
        """Compile the templates; with tools, the one called "tool_use" is taken where there is one.

        `variables` are the names of special tokens, such as `bos_token`.
        """
        self._templates = {
            name: ChatTemplate(source, variables=variables, where=where)
            for name, source in templates.items()
        }
        if "default" not in self._templates:
            raise ValueError(
                f"{where}: templates {', '.join(templates)}, but none is called default; name one"
            )
        self._tokenizer, self._text = tokenizer, RenderedText(tokenizer)

    def prompt(
        self,
        messages: Sequence[Message],
        mode: Mode,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[int, ...]:
        """Return the ids for the model to go on from.

        Raises ValueError where the template refuses the conversation, or makes nothing of it.
        """
        ids = self._ids(self._written(messages, mode, tools, asks=True))
        if not ids:
            raise ValueError(
                "messages: the chat template writes nothing for this conversation; give a turn "
                "with text"
            )
        return tuple(ids)

    def spans(
        self,
        messages: Sequence[Message],
        mode: Mode,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Span]:
        """Return a conversation as spans; targets are the answers to learn, their ends included.

        With reasoning on the last answer alone is learnt. Raises ValueError where the last answer
        does not stand after the text that asks for it, or nothing ends its turn.
        """
        whole = self._ids(self._written(messages, mode, tools))
        learnt: list[tuple[int, int]] = []
        last = len(messages) - 1
        for at, message in enumerate(messages):
            if message.role != "assistant" or (mode == "on" and at < last):
                continue
            asked = self._ids(self._written(messages[:at], mode, tools, asks=True)) if at else []
            answered = self._ids(self._written(messages[: at + 1], mode, tools))
            end = self._turn_end(answered, len(asked))
            if end and answered[: len(asked)] == asked and whole[:end] == answered[:end]:
                learnt.append((len(asked), end))
            elif at == last:
                raise ValueError(self._why_not(asked, answered))
        return _cut(whole, learnt)

    def opening(self, mode: Mode) -> str:
        """Return what the template itself begins an answer with: an opened trace, else nothing."""
        messages = [Message("user", "1")]
        asked = self._written(messages, mode, (), asks=True)
        before = self._written(messages, mode, ())
        added = asked.removeprefix(before) if asked.startswith(before) else asked
        opened = added.rpartition(OPEN_TAG)
        return OPEN_TAG + opened[2] if opened[1] and CLOSE_TAG not in opened[2] else ""

    @cached_property
    def knows_thinking(self) -> bool:
        """Whether the template has a switch for reasoning."""
        return any(name in self._templates["default"].source for name in _THINKING)

    def _written(
        self,
        messages: Sequence[Message],
        mode: Mode,
        tools: Sequence[Mapping[str, Any]],
        *,
        asks: bool = False,
    ) -> str:
        template = self._templates.get("tool_use" if tools else "default")
        template = template or self._templates["default"]
        named = next((name for name in _REASONING if name in template.source), None)
        turns = [as_dict(message, reasoning_as=named) for message in messages]
        switch = {name: mode == "on" for name in _THINKING if name in template.source}
        return template.render(
            self._text.guarded(turns),
            tools=self._text.guarded(list(tools)),
            add_generation_prompt=asks,
            **switch,
        ).text

    def _ids(self, text: str) -> list[int]:
        return self._text.encode(text)

    def _turn_end(self, ids: Sequence[int], start: int) -> int | None:
        """Return where the answer ends: behind the last control token."""
        places = (
            i for i in range(len(ids) - 1, start - 1, -1) if self._tokenizer.is_special(ids[i])
        )
        last = next(places, None)
        return None if last is None else last + 1

    def _why_not(self, asked: Sequence[int], answered: Sequence[int]) -> str:
        if answered[: len(asked)] != asked:
            why = "writes an answer otherwise than after the text that asks for it"
        elif self._turn_end(answered, len(asked)) is None:
            why = "ends an answer with no control token, so that no end could be learnt"
        else:
            why = "writes an answer otherwise when more turns follow"
        return (
            f"the chat template {why}; such a checkpoint can be served, but not tuned in its own "
            "format: give it another chat_template.jinja"
        )


def as_dict(message: Message, *, reasoning_as: str | None = "reasoning_content") -> dict[str, Any]:
    """Return a turn as templates read it; reasoning without a name stands in the content."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning and reasoning_as is None:
        turn["content"] = with_reasoning(message.reasoning.strip(), message.content)
    elif message.reasoning and reasoning_as is not None:
        turn[reasoning_as] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return turn


def _cut(ids: Sequence[int], learnt: Sequence[tuple[int, int]]) -> list[Span]:
    spans, at = [], 0
    for start, end in learnt:
        spans.append(Span("context", tuple(ids[at:start])))
        spans.append(Span("assistant", tuple(ids[start:end]), is_target=True))
        at = end
    spans.append(Span("context", tuple(ids[at:])))
    return [span for span in spans if span.token_ids]
