"""What continues prompts: the embedded engine, or a server at a URL. Who samples need not know.

It is defined by what it does; `engine/engine.py` and `remote.py` are the two that there are.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fretsaw.engine.sequence import Event, Request
from fretsaw.engine.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Sampler(Protocol):
    """Continues prompts, given as token ids, with one version of a model's weights."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the model's own, and the token that begins a text."""
        ...

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together, at most."""
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Yield the tokens of every request with raw log-probabilities at temperature 1.

        One that fails ends with an event of its `error`, or all of them with an exception.
        """
        ...

    def load_weights(self, named_tensors: "Iterable[tuple[str, Tensor]]", *, version: int) -> None:
        """Take over new weights; with none the sampler's own have changed in place."""
        ...

    def stats(self) -> Stats:
        """Return counts so far, and the version of the weights."""
        ...
