"""Grading in processes that can be killed: for graders that may hang or take the process down."""

import functools
import importlib
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from fretsaw.stage.attempt import attempt

NUM_WORKERS = 2
START_S = 60.0  # until a process must be ready: imports, on a busy machine


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    deadline: float
    index: int | None = None  # of the pair it grades; None until it is ready for one

    def take(self, index: int, pair: tuple[Any, Any], deadline_s: float) -> bool:
        """Begin with a pair; return whether the process is there to do so."""
        try:
            self.pipe.send(pair)
        except OSError:  # it died after its last answer
            return False
        self.index, self.deadline = index, time.monotonic() + deadline_s
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Workers:
    """Processes that grade by one function; they stay for the next batch and end with this one.

    The function is named by "module:function"; only they import it, before they take a pair.
    """

    def __init__(self, function: str):
        self._function = function
        self._idle: list[_Worker] = []

    def grade(self, pairs: Sequence[tuple[Any, Any]], *, deadline_s: float) -> list[Any]:
        """Return what the function makes of each pair, or the words that say why there is nothing.

        A pair that takes longer than the deadline costs its process, not the others. An error that
        the function raises is raised here.
        """
        outcomes: list[Any] = [None] * len(pairs)
        todo = deque(range(len(pairs)))
        workers: list[_Worker] = []

        def takes(worker: _Worker) -> bool:
            if taken := worker.take(todo[0], pairs[todo[0]], deadline_s):
                todo.popleft()
            return taken

        try:
            while self._idle and todo:
                worker = self._idle.pop()
                if takes(worker):
                    workers.append(worker)
                else:
                    worker.kill()
            num_more = min(NUM_WORKERS - len(workers), len(todo))
            workers += [_start(self._function) for _ in range(num_more)]
            while workers:
                left_s = min(worker.deadline for worker in workers) - time.monotonic()
                answering = wait([worker.pipe for worker in workers], timeout=max(0.0, left_s))
                for worker in list(workers):
                    if worker.pipe in answering:
                        is_alive = _hear(worker, outcomes)
                    elif time.monotonic() < worker.deadline:
                        continue
                    else:
                        assert worker.index is not None, f"no grader was ready within {START_S:g} s"
                        outcomes[worker.index] = f"no grade within {deadline_s:g} s"
                        is_alive = False
                    if is_alive and todo and takes(worker):
                        continue
                    workers.remove(worker)
                    if is_alive and not todo:
                        self._idle.append(worker)
                        continue
                    worker.kill()
                    workers += [_start(self._function)] if todo else []
        finally:
            for worker in workers:
                worker.kill()
        return outcomes


@functools.cache
def workers_of(function: str) -> Workers:
    """Return the processes that grade by a function, the same for every batch."""
    return Workers(function)


def named(place: str) -> Callable[..., Any]:
    """Import the function that "module:function" names."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def _start(function: str) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(function, there), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here, time.monotonic() + START_S)


def _hear(worker: _Worker, outcomes: list[Any]) -> bool:
    """Keep what a process says of its pair; return whether it can take another."""
    try:
        outcome = worker.pipe.recv()
    except (EOFError, OSError):
        if worker.index is None:
            raise ValueError(
                "a grader's process died before it was ready; from a script of your own, grade "
                "under `if __name__ == '__main__':`"
            ) from None
        outcomes[worker.index] = "the grader's process died"
        return False
    match outcome:
        case ("raised", error):
            raise error
        case ("did", grade):
            assert worker.index is not None, "an answer follows a pair"
            outcomes[worker.index] = grade
    return True  # the first word only says that it is ready


def _work(place: str, pipe: Connection) -> None:
    function = named(place)
    pipe.send(None)
    while True:
        answer, expected = pipe.recv()
        pipe.send(attempt(partial(function, answer, expected)))
