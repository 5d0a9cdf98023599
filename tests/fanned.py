"""Tasks of other processes, in a file that those can import."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path


def squares(folder: Path) -> Callable:
    """Prepare in `folder`, which tells how often that was done; return what does a task."""
    (folder / f"prepared-{os.getpid()}").touch()
    return partial(square, folder)


def square(folder: Path, task: str | float, tell: Callable) -> float:
    """Return the task's square, unless the task says to do worse."""
    match task:
        case "die once":
            if not (folder / "died").exists():
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            task = 11
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fail":
            raise KeyError("a task that fails")
        case "sleep":
            (folder / f"asleep-{os.getpid()}").touch()
            time.sleep(60)
    assert isinstance(task, float | int)
    tell(task)
    return task * task
