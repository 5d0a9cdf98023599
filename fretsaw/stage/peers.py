"""The processes that run one stage together: which one this is, and how they agree.

torchrun, or whatever sets its variables, starts one command several times. A stage in a process of
its own has no peers: everything here is then the plain answer, and torch is not imported.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

T = TypeVar("T")
_ECHO = "raised on rank 0, which tells it"


@dataclass(frozen=True)
class Peers:
    """This process among those of its stage.

    Whatever talks to the others must be called by all of them, in the same order.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> "Peers":
        """Read what torchrun says: RANK and WORLD_SIZE."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in the order of their ranks, on each of them."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def total(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return each sum over all processes, added in the order of the ranks."""
        everyone = self.gather(sums)
        return {name: sum(own[name] for own in everyone) for name in sums}

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether some process has it."""
        return [any(flag) for flag in zip(*self.gather(flags), strict=True)]

    def on_first(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 alone; what it returns or raises, all return or raise.

        On the others the error is an echo, for rank 0 to tell.
        """
        outcome: tuple[T | None, Exception | None] = None, None
        if self.rank == 0:
            if self.size == 1:
                return function()
            try:
                outcome = function(), None
            except Exception as error:  # the others wait for an answer
                outcome = None, error
        value, error = self.gather(outcome)[0]
        if error is not None:
            if self.rank:
                error.add_note(_ECHO)
            raise error
        return value  # type: ignore[return-value]

    def share(self, num_rows: int, what: str) -> slice:
        """Return which rows of a step are this process's; `what` names the setting behind them."""
        if num_rows % self.size:
            raise ValueError(
                f"{what}: {num_rows} rows a step do not divide among {self.size} processes; make "
                f"the rows a multiple of {self.size}, or start another number of processes"
            )
        own = num_rows // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def rounds(self, items: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """Yield this process's items, dealt in turn, and whether each counts.

        All processes have as many rounds, for a sharded model runs on all or none: who has nothing
        left repeats the first item, and its result is not to be counted.
        """
        for first in range(0, len(items), self.size):
            at = first + self.rank
            yield (items[at], True) if at < len(items) else (items[0], False)


def is_echo(error: BaseException) -> bool:
    """Whether an error was raised on rank 0, which tells it, and only repeated here."""
    return _ECHO in getattr(error, "__notes__", ())


def end_process(body: Callable[[], int | None]) -> NoReturn:
    """Run what this process is for, and end it with the exit code that this returns or raises.

    Among peers the interpreter is not torn down: a thread of gloo's that lets go of a tensor
    meanwhile would abort the process, its work done (PyTorch 2.13; docs/log/distributed.md).
    """
    if Peers.from_environment().size == 1:
        sys.exit(body())
    try:
        code = body() or 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code or 0)


ALONE = Peers()
