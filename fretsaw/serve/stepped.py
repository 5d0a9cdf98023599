"""What the server needs of an engine, be it the engine itself or one in another process."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fretsaw.engine.sequence import Event, Request
from fretsaw.engine.stats import Stats


class EngineLost(RuntimeError):
    """The engine's process has ended; nothing more will come of it."""


@runtime_checkable
class Stepped(Protocol):
    """An engine that is told what to do between two steps.

    Whatever `step` raises, and `EngineLost` from anything, means that the engine is lost.
    """

    def add(self, request: Request) -> int:
        """Queue a request and return its id."""
        ...

    def abort(self, request: int) -> None:
        """Drop a request."""
        ...

    def force(self, request: int, token_ids: Sequence[int]) -> None:
        """Append tokens to a request."""
        ...

    def step(self) -> list[Event]:
        """Compute what comes next."""
        ...

    def stats(self) -> Stats:
        """Return counts, and how full the engine is."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        ...
