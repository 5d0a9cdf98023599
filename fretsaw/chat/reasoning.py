"""The tags around reasoning: written, told apart, and what is wrong with them.

Reasoning stands in the answer itself: `<think>\\n...\\n</think>\\n\\nanswer`.
"""

from dataclasses import dataclass
from typing import Literal

from fretsaw.chat.tokenizer import Tokenizer

Mode = Literal["on", "off"]  # whether it is asked for
MODES: tuple[Mode, ...] = ("on", "off")
OPEN_TAG, CLOSE_TAG = "<think>", "</think>"
NO_REASONING = f"{OPEN_TAG}\n\n{CLOSE_TAG}\n\n"  # how v1.5 begins an answer with reasoning off


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
    """Return an earlier answer as it stands in a history: what follows its last closing tag.

    Of reasoning that was never closed nothing is left.
    """
    if CLOSE_TAG in text:
        return text.rpartition(CLOSE_TAG)[2].strip()
    return "" if text.lstrip().startswith(OPEN_TAG) else text.strip()


def format_fault(text: str, mode: Mode) -> str | None:
    """Say what is wrong with an answer's tags, None if nothing is.

    On: it starts with the opening tag, has exactly one pair with reasoning in it, and an answer
    after it. Off: no tags.
    """
    num_open, num_closed = text.count(OPEN_TAG), text.count(CLOSE_TAG)
    if mode == "off":
        return "tags with reasoning off" if num_open or num_closed else None
    if not text.strip().startswith(OPEN_TAG):
        return f"does not start with {OPEN_TAG}"
    if (num_open, num_closed) != (1, 1):
        return f"{num_open} opening and {num_closed} closing tags"
    reasoning, answer = split_reasoning(text)
    if not reasoning:
        return "no reasoning between the tags"
    return None if answer else "no answer after the reasoning"


Piece = tuple[Literal["reasoning", "content"], str]


@dataclass
class ReasoningSplitter:
    """`split_reasoning` of a text that comes in pieces: each as soon as it is certain.

    The reasoning's pieces joined, and the content's, are what `split_reasoning` gives for the whole
    text: what may be the start of a tag is held back, and so is whitespace that may be the end.
    A text that is cut within its opening tag is neither: reasoning would have followed.
    """

    _state: Literal["undecided", "reasoning", "content"] = "undecided"
    _held: str = ""
    _begun: bool = False  # whether text of this state has been given
    has_reasoning: bool = False  # whether the text begins with a trace, be it an empty one

    @property
    def is_reasoning(self) -> bool:
        """Whether the text so far ends inside the trace."""
        return self._state == "reasoning"

    def feed(self, text: str) -> list[Piece]:
        """Take more text; return what is now certain, possibly nothing."""
        self._held += text
        if self._state == "undecided":
            begun = self._held.lstrip()
            if len(begun) < len(OPEN_TAG) and OPEN_TAG.startswith(begun):
                return []
            self.has_reasoning = begun.startswith(OPEN_TAG)
            self._state = "reasoning" if self.has_reasoning else "content"
            self._held = begun.removeprefix(OPEN_TAG)
        if self._state == "content":
            return self._give(self._held)
        reasoning, tag, answer = self._held.partition(CLOSE_TAG)
        if not tag:
            return self._give(reasoning[: len(reasoning) - _len_started(reasoning, CLOSE_TAG)])
        pieces = self._give(reasoning)
        self._state, self._held, self._begun = "content", answer, False
        return pieces + self._give(answer)

    def flush(self, *, is_cut: bool = False) -> list[Piece]:
        """Return what is left at the end; `is_cut` says that the text would have gone on."""
        if self._state == "undecided" and is_cut:
            return []
        self._state = "content" if self._state == "undecided" else self._state
        return self._give(self._held)

    def _give(self, certain: str) -> list[Piece]:
        """Give a beginning of what is held, without the whitespace around the whole."""
        text = certain.rstrip()
        self._held = self._held[len(text) :]
        if not self._begun:
            text = text.lstrip()
        if not text:
            return []
        self._begun = True
        return [("reasoning" if self._state == "reasoning" else "content", text)]


def _len_started(text: str, tag: str) -> int:
    """Return how many characters at the end of a text may be the start of a tag."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)


def check_tags(tokenizer: Tokenizer) -> None:
    """Raise where a tokenizer cannot write the tags, so that no answer could keep the format."""
    text = with_reasoning("a", "b")
    written = tokenizer.decode(tokenizer.encode(text)).strip()
    if written != text:
        raise ValueError(
            f"chat: the tokenizer reads {text!r} back as {written!r}, so reasoning could not be "
            "told apart; use a checkpoint whose vocabulary has every byte"
        )
