"""What is asked of the engine, what it says, and what it remembers of a request in between."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from numbers import Integral

from fretsaw.engine.sampling import Sampling


class RequestFailed(RuntimeError):
    """A request that was accepted and could not be answered; it says which and why."""


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it. Its sampling's stop texts are for whoever reads the text."""

    token_ids: tuple[int, ...]
    sampling: Sampling
    stop_token_ids: tuple[int, ...] = ()
    num_top_logprobs: int = 0  # reported beside every token
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        self.sampling.check()
        if not (isinstance(self.num_top_logprobs, Integral) and self.num_top_logprobs >= 0):
            raise ValueError(
                f"num_top_logprobs {self.num_top_logprobs}: must be a whole number, at least 0"
            )


@dataclass(frozen=True)
class TokenLogprob:
    """A token's raw log-probability at temperature 1, and its strongest rivals, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """One generated token; the last of a request says why it ended."""

    request: int  # what `add` returned; within `generate`, the index into the requests
    token_id: int | None  # None only where nothing was to be generated, or nothing could be
    logprob: float
    finish_reason: str | None = None  # "stop", "length" or "error"
    top_logprobs: tuple[tuple[int, float], ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None  # in the first event, where asked
    error: str | None = None  # why it failed, where it did


def whole(events: Generator[Event, None, None]) -> Iterator[Event]:
    """Yield events for whom one failure spoils all: raise `RequestFailed` at the first."""
    with contextlib.closing(events):
        for event in events:
            if event.error is not None:
                raise RequestFailed(f"request {event.request}: {event.error}")
            yield event


@dataclass(eq=False)  # itself, not one that looks alike
class SequenceState:
    """A request on its way: its tokens so far, and how many have keys and values in its pages."""

    id: int
    request: Request
    token_ids: list[int]
    num_computed: int = 0
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # of its whole prefix blocks, see pages.py
    is_running: bool = False
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    has_spoken: bool = False

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.token_ids) - len(self.request.token_ids)

    @property
    def num_pending(self) -> int:
        """Tokens that have no keys and values yet; the last of them gives the next one's logits."""
        return len(self.token_ids) - self.num_computed


@dataclass(frozen=True)
class Slice:
    """The tokens of one sequence that a step computes: `length` of them from `start` on."""

    sequence: SequenceState
    start: int
    length: int

    @property
    def is_last(self) -> bool:
        """Whether the next token's logits come of it."""
        return self.start + self.length == len(self.sequence.token_ids)

    @property
    def is_decoding(self) -> bool:
        """Whether it is the token after the last that was generated."""
        return self.is_last and self.length == 1 and self.sequence.has_spoken
