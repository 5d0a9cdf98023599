"""One answer as it grows: tokens in; text out, reasoning apart, with its end and its counts."""

from collections.abc import Sequence
from dataclasses import dataclass

from fretsaw.chat.reasoning import CLOSE_TAG, OPEN_TAG, Piece, ReasoningSplitter
from fretsaw.chat.tokenizer import StreamDecoder, Tokenizer
from fretsaw.engine.sequence import Event
from fretsaw.engine.text_stream import TextStream
from fretsaw.serve.engine_thread import FORCED_LOGPROB

Pieces = list[Piece]


@dataclass(frozen=True)
class Reading:
    """How an answer's tokens are read."""

    stop: tuple[str, ...] = ()
    is_split: bool = False  # the reasoning is told apart from the content
    spares_reasoning: bool = False  # stop strings do not count within the reasoning
    skip_special: bool = True


class Answer:
    """The text of one sequence, from its engine events."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        reading: Reading,
        *,
        after: Sequence[int] = (),
        opening: str = "",  # what the prompt has already written of the answer
    ):
        self._stream = TextStream(
            tokenizer,
            stop=reading.stop,
            after=after,
            spare=(OPEN_TAG, CLOSE_TAG) if reading.spares_reasoning else None,
            skip_special=reading.skip_special,
            opening=opening,
        )
        self._splitter = ReasoningSplitter() if reading.is_split else None
        self.finish_reason: str | None = None
        self.num_tokens = 0
        if self._splitter is not None:
            self._splitter.feed(opening)
        self.num_reasoning_tokens = 0  # the tags' own included

    def feed(self, event: Event) -> Pieces:
        """Take an event; return the text that is now certain, by kind."""
        assert self.finish_reason is None, "nothing follows the end of an answer"
        text, ended = "", event.finish_reason
        if event.token_id is not None:
            self.num_tokens += 1
            if ended != "stop":  # a stop token is no part of the text
                text = self._stream.feed([event.token_id])
        if self._stream.stopped_by is not None:
            ended = "stop"
        elif ended is not None:
            text += self._stream.flush()
            if self._stream.stopped_by is not None:
                ended = "stop"
        self.finish_reason = ended
        return self._split(text)

    def _split(self, text: str) -> Pieces:
        splitter = self._splitter
        if splitter is None:
            return [("content", text)] if text else []
        was_reasoning, had_begun = splitter.is_reasoning, splitter.has_reasoning
        pieces = splitter.feed(text) if text else []
        has_begun = splitter.has_reasoning and not had_begun  # and may have ended at once
        if was_reasoning or splitter.is_reasoning or has_begun:
            self.num_reasoning_tokens = self.num_tokens
        if self.finish_reason is None:
            return pieces
        is_cut = self.finish_reason != "stop" or self._stream.stopped_by is not None
        return pieces + splitter.flush(is_cut=is_cut)


class ThinkingBudget:
    """Ends a trace that has used its tokens: what it returns is put in after it."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, opening: str = ""):
        self._decoded, self._splitter = StreamDecoder(tokenizer), ReasoningSplitter()
        self._splitter.feed(opening)
        self._closing = tuple(tokenizer.encode(f"\n{CLOSE_TAG}\n\n"))
        self._num_left = max_tokens
        self._is_over = False

    def feed(self, token_id: int) -> Sequence[int]:
        """Take a token; return the ids that close the trace once the budget is used."""
        if self._is_over:
            return ()
        was_open = self._splitter.is_reasoning
        pieces = self._splitter.feed(self._decoded.feed([token_id]))
        is_open = self._splitter.is_reasoning
        has_answer = any(kind == "content" for kind, _ in pieces)
        if has_answer or (was_open and not is_open):
            self._is_over = True
            return ()
        self._num_left -= was_open
        if not is_open or self._num_left > 0:
            return ()
        self._is_over = True
        return self._closing


def is_forced(event: Event) -> bool:
    """Whether a token was put in rather than sampled."""
    return event.logprob == FORCED_LOGPROB
