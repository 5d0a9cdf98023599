"""One independent task: what is called, what it tells, and how often it may be lost."""

from collections.abc import Callable, Iterator
from typing import Any

MAX_LOSSES = 3  # of workers over one task; then it is the task that kills them


CHECK_EVERY_S = 0.2


Tell = Callable[[Any], None]  # what a task says of itself while it goes on


Do = Callable[[Any, Tell], Any]  # (task, tell) -> result


Prepare = Callable[[], Do]  # called once a worker


Hear = Callable[[int, Any], None]  # (index of a task, what it says)


MapTasks = Callable[..., Iterator[tuple[int, Any]]]  # (tasks, hear) -> (index, result)


def ignore(index: int, said: Any) -> None:
    """Hear what a task says, and do nothing."""


def lost(index: int, task: Any, times: int, how: str) -> RuntimeError:
    """Return the error of a task that no worker survives."""
    return RuntimeError(
        f"task {index} ({task}): its worker died {times} times ({how}); a kill without a word "
        "is often the machine's memory: try fewer workers"
    )
