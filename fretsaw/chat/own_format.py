"""A checkpoint's own chat format, as its template writes it: for prompts, and with a loss mask.

What is learnt follows from rendering beginnings of a conversation: an answer is what stands after
the text that asks for it, up to the token that ends its turn. A template that does not write an
answer after that text, as it stood, can't be learnt from and says so; it can still be served.
"""

import copy
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from fretsaw.chat.jinja_template import ChatTemplate, TemplateRefused, switches
from fretsaw.chat.message import Message, check_roles
from fretsaw.chat.parts import answer_parts
from fretsaw.chat.reasoning import (
    CLOSE_TAG,
    OPEN_TAG,
    Mode,
    split_reasoning,
    with_reasoning,
    without_reasoning,
)
from fretsaw.chat.render import system_text
from fretsaw.chat.rendered_text import RenderedText
from fretsaw.chat.renderer import ChatFormat, Span, Tools
from fretsaw.chat.toggle import NO_THINK, Toggle
from fretsaw.chat.tokenizer import Tokenizer

_REASONING = ("reasoning_content", "reasoning", "thinking")  # what templates call a turn's


class OwnFormat(ChatFormat):
    """Renders conversations by a checkpoint's template."""

    name = "the checkpoint's own chat template"

    def __init__(
        self,
        tokenizer: Tokenizer,
        templates: Mapping[str, str],
        *,
        variables: Mapping[str, Any],
        where: str = "chat template",
        toggle: Toggle = "none",
    ):
        """Compile the templates; with tools, the one called "tool_use" is taken where there is one.

        `variables` are the names of special tokens, such as `bos_token`. A toggle of v1 is a line
        of the system turn, which the template writes like any other. Raises ValueError for a
        template that is no Jinja, or where none is the default.
        """
        if "default" not in templates:
            raise ValueError(
                f"{where}: templates {', '.join(templates)}, but none is called default; name one"
            )
        self._templates = {
            name: ChatTemplate(source, variables=variables, where=where)
            for name, source in templates.items()
        }
        self.tokenizer, self.toggle = tokenizer, toggle
        self._text = RenderedText(tokenizer)

    def with_toggle(self, toggle: Toggle) -> "OwnFormat":
        """Return the same format, told the mode in another way."""
        told = copy.copy(self)
        told.toggle = toggle
        return told

    def _prompt_ids(self, messages: Sequence[Message], mode: Mode, tools: Tools) -> tuple[int, ...]:
        return self._whole(self._ids(messages, mode, tools, asks=True))

    def conversation_ids(
        self, messages: Sequence[Message], mode: Mode, tools: Tools = ()
    ) -> tuple[int, ...]:
        """Return the ids of a conversation as it stands.

        Raises ValueError where the template refuses it, or makes nothing of it.
        """
        check_roles(messages)
        return self._whole(self._ids(messages, mode, tools))

    def render(
        self,
        messages: Sequence[Message],
        mode: Mode,
        tools: Tools = (),
        unlearnt: Container[int] = (),
    ) -> list[Span]:
        """Return a conversation as spans; targets are the answers to learn, their ends included.

        With reasoning on the last answer alone is learnt. Raises ValueError where the last answer
        does not stand after the text that asks for it, or nothing ends its turn.
        """
        check_roles(messages)
        own = messages[0].content if messages[0].role == "system" else ""
        mode = self.mode_in(own) or mode
        whole = self._ids(messages, mode, tools)
        learnt: list[tuple[int, int, int]] = []  # from, to, of which message
        last = len(messages) - 1
        for at, message in enumerate(messages):
            if message.role != "assistant" or (mode == "on" and at < last) or at in unlearnt:
                continue
            asked = self._ids(messages[:at], mode, tools, asks=True) if at else []
            answered = self._ids(messages[: at + 1], mode, tools)
            end = self._turn_end(answered, len(asked))
            starts_alike = answered[: len(asked)] == asked
            if (
                at == last
                and starts_alike
                and self._drops_reasoning(message, answered[len(asked) :])
            ):
                raise ValueError(_cannot_be_learnt("leaves out the reasoning of an answer"))
            if end and starts_alike and whole[:end] == answered[:end]:
                learnt.append((len(asked), end, at))
            elif at == last:
                raise ValueError(self._why_not(asked, answered))
        return self._cut(whole, learnt, messages)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a turn: the tokenizer's, and the one that the template writes last."""
        turns = [Message("user", "1"), Message("assistant", "2")]
        try:
            ids, asked = self._ids(turns, "off", ()), self._ids(turns[:1], "off", ())
        except ValueError:  # the template wants other conversations
            return self.tokenizer.eos_token_ids
        end = self._turn_end(ids, len(asked))
        written = () if end is None else (ids[end - 1],)
        return tuple(dict.fromkeys((*self.tokenizer.eos_token_ids, *written)))

    def opening(self, mode: Mode) -> str:
        """Return what the template itself begins an answer with: an opened trace, else nothing."""
        messages = [Message("user", "1")]
        try:
            asked = self._written(messages, mode, (), asks=True)
            before = self._written(messages, mode, ())
        except ValueError:  # the template wants other conversations
            return ""
        added = asked.removeprefix(before) if asked.startswith(before) else asked
        opened = added.rpartition(OPEN_TAG)
        return OPEN_TAG + opened[2] if opened[1] and CLOSE_TAG not in opened[2] else ""

    def text_as_it_stands(self, messages: Sequence[Message], mode: Mode) -> str:
        """Return what the template writes for a conversation, its toggle left to the messages."""
        return self._rendered(messages, mode, (), asks=True)

    def _ids(
        self, messages: Sequence[Message], mode: Mode, tools: Tools, *, asks: bool = False
    ) -> list[int]:
        return self._text.encode(self._written(messages, mode, tools, asks=asks))

    def _written(
        self, messages: Sequence[Message], mode: Mode, tools: Tools, *, asks: bool = False
    ) -> str:
        return self._rendered(self._told(messages, mode), mode, tools, asks=asks)

    def _told(self, messages: Sequence[Message], mode: Mode) -> Sequence[Message]:
        """Return the conversation with what tells the mode in its system turn.

        With v1's line the history is as v1's: without its traces.
        """
        has_own = bool(messages) and messages[0].role == "system"
        own = messages[0].content if has_own else ""
        turns = messages[1:] if has_own else messages
        if self.toggle == "v1.5" and mode == "off" and self.mode_in(own) is None:
            return [Message("system", f"{own} {NO_THINK}".strip()), *turns]
        if self.toggle != "v1":
            return messages
        said = system_text(own, mode)
        last = len(turns) - 1
        return [
            Message("system", said or ""),
            *(_as_history(turn) if at < last else turn for at, turn in enumerate(turns)),
        ]

    def _rendered(
        self, messages: Sequence[Message], mode: Mode, tools: Tools, *, asks: bool
    ) -> str:
        template = self._templates.get("tool_use" if tools else "default")
        template = template or self._templates["default"]
        _refuse_what_is_left_out(template, messages, tools)
        named = next((name for name in _REASONING if name in template.source), None)
        turns = [as_dict(message, reasoning_as=named) for message in messages]
        return template.render(
            self._text.guarded(turns),
            tools=self._text.guarded(list(tools)),
            add_generation_prompt=asks,
            **dict.fromkeys(switches(template.source), mode == "on"),
        )

    def _whole(self, ids: Sequence[int]) -> tuple[int, ...]:
        if not ids:
            raise ValueError(
                "messages: the chat template writes nothing for this conversation; give a turn "
                "with text"
            )
        return tuple(ids)

    def _turn_end(self, ids: Sequence[int], start: int) -> int | None:
        """Return where the answer ends: behind the last control token."""
        places = (
            i for i in range(len(ids) - 1, start - 1, -1) if self.tokenizer.is_special(ids[i])
        )
        last = next(places, None)
        return None if last is None else last + 1

    def _cut(
        self,
        ids: Sequence[int],
        learnt: Sequence[tuple[int, int, int]],
        messages: Sequence[Message],
    ) -> list[Span]:
        spans, at = [], 0
        for start, end, number in learnt:
            answer = tuple(ids[start:end])
            parts = answer_parts(self.tokenizer, answer, messages[number])
            spans.append(Span("context", tuple(ids[at:start])))
            spans.append(Span("assistant", answer, True, *parts))
            at = end
        spans.append(Span("context", tuple(ids[at:])))
        return [span for span in spans if span.token_ids]

    def _why_not(self, asked: Sequence[int], answered: Sequence[int]) -> str:
        if answered[: len(asked)] != asked:
            why = "writes an answer otherwise than after the text that asks for it"
        elif self._turn_end(answered, len(asked)) is None:
            why = "ends an answer with no control token, so that no end could be learnt"
        else:
            why = "writes an answer otherwise when more turns follow"
        return _cannot_be_learnt(why)

    def _drops_reasoning(self, message: Message, answered: Sequence[int]) -> bool:
        inline, _ = split_reasoning(message.content)
        reasoning = (message.reasoning or inline or "").strip()
        return reasoning not in self.tokenizer.decode(answered, skip_special=False)


def _refuse_what_is_left_out(
    template: ChatTemplate, messages: Sequence[Message], tools: Tools
) -> None:
    """Raise `TemplateRefused` where a template would pass over tools or calls without a word."""
    given = {"tools": bool(tools), "tool_calls": any(turn.tool_calls for turn in messages)}
    for name, is_given in given.items():
        if is_given and name not in template.source:
            raise TemplateRefused(
                f"{name}: this checkpoint's chat template does not write them; leave them out, or "
                "take a model whose template does"
            )


def _cannot_be_learnt(why: str) -> str:
    return (
        f"the chat template {why}; such a checkpoint can be served, but not tuned in its own "
        "format: give it another chat_template.jinja"
    )


def _as_history(turn: Message) -> Message:
    """Return an earlier turn: of an answer what follows its reasoning."""
    if turn.role != "assistant":
        return turn
    return replace(turn, content=without_reasoning(turn.content), reasoning=None)


def as_dict(message: Message, *, reasoning_as: str | None = "reasoning_content") -> dict[str, Any]:
    """Return a turn as templates read it; reasoning without a name stands in the content."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning and reasoning_as is None:
        turn["content"] = with_reasoning(message.reasoning.strip(), message.content)
    elif message.reasoning and reasoning_as is not None:
        turn[reasoning_as] = message.reasoning
    named = {"tool_call_id": message.tool_call_id, "name": message.name}
    turn |= {key: value for key, value in named.items() if value}
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
