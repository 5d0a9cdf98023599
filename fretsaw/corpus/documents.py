"""A text or a conversation -> the token ids that a checkpoint would read.

A text stands between what begins one and the end-of-text token, where the tokenizer has them. A
conversation is written in the checkpoint's own chat format; without one it is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import Mode, split_reasoning
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.data.records import Record

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")


@dataclass(frozen=True)
class Writer:
    """Writes documents as token ids."""

    tokenizer: Tokenizer
    format: ChatFormat | None
    begin: tuple[int, ...]
    end: tuple[int, ...]

    def token_ids(self, document: str | Record) -> list[int]:
        """Return a document's ids, what begins and what ends it included."""
        if isinstance(document, str):
            return [*self.begin, *self.tokenizer.encode(document), *self.end]
        if self.format is None:
            raise without_format(document)
        ids = self.format.conversation_ids(document.messages, document.mode, document.tools)
        return [*ids] if self.end == ids[-1:] else [*ids, *self.end]


def without_format(record: Record) -> ValueError:
    """Return the refusal of a conversation where there is no format for it."""
    return ValueError(
        f"{record.where}: a conversation, but there is no chat format to write it in; give rows "
        "with a 'text' field, or a --parent that is a chat model"
    )


def writer(tokenizer: Tokenizer, format: ChatFormat | None) -> Writer:
    """Return how documents are written; raises ValueError where nothing tells them apart."""
    begin, end = tokenizer.begin_ids, _end_ids(tokenizer, format)
    if not begin and not end:
        begin = tuple(tokenizer.eos_token_ids[:1])
    if not begin and not end:
        raise ValueError(
            "corpus: the tokenizer names neither a bos nor an eos token, so documents cannot be "
            "told apart; add one to tokenizer_config.json"
        )
    return Writer(tokenizer, format, begin, end)


def plain_record(record: Record) -> Record | None:
    """Return a conversation for a model without reasoning tags: its trace is part of the answer.

    None for the bare answer of a row that is there with its working too.
    """
    if record.kind == "question, answer" and record.mode == "off":
        return None
    return replace(record, messages=tuple(map(_untagged, record.messages)), mode="off")


def turn_frame(format: ChatFormat, mode: Mode) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what stands before a user's text in a prompt and what follows it."""
    one, other = (format.prompt_ids([Message("user", text)], mode) for text in ("A", "7"))
    return _common(one, other), _common(one[::-1], other[::-1])[::-1]


def _untagged(message: Message) -> Message:
    if message.role != "assistant":
        return message
    reasoning, answer = message.reasoning, message.content
    if reasoning is None:
        reasoning, answer = split_reasoning(answer)
    content = f"{reasoning}\n\n{answer}" if reasoning else answer
    return replace(message, content=content, reasoning=None)


def _end_ids(tokenizer: Tokenizer, format: ChatFormat | None) -> tuple[int, ...]:
    named = (tokenizer.token_id(name) for name in END_OF_TEXT)
    ends = [id for id in named if id is not None and tokenizer.is_special(id)]
    turn_ends = () if format is None else format.ends
    ends += [id for id in tokenizer.eos_token_ids if id not in turn_ends]
    return tuple(ends[:1])


def _common(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return tuple(id for id, _ in pairs)
