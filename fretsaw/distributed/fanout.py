"""Independent tasks on several workers: this process, processes of this machine, a Ray cluster.

Every worker prepares once, opening what it needs itself, and then does one task after another. A
task's result is a function of the task alone, so that neither the number of workers nor the order
in which they finish matters. A worker that dies loses nothing: another does its task again, up to
`MAX_LOSSES` times. (concurrent.futures and loky give up all tasks when one worker dies, and do not
say whose task it was.)
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from fretsaw.distributed.task import (
    CHECK_EVERY_S,
    MAX_LOSSES,
    Hear,
    MapTasks,
    Prepare,
    ignore,
    lost,
)
from fretsaw.stage.attempt import attempt
from fretsaw.stage.progress import say
from fretsaw.stage.workers import Workers


@contextlib.contextmanager
def fan_out(
    prepare: Prepare,
    workers: Workers,
    *,
    device: str = "cpu",
    check: Callable[[], None] = lambda: None,
    is_timing: bool = False,
) -> Iterator[MapTasks]:
    """Open a pool: yield what maps tasks to results, in the order in which they are done.

    `prepare` and the tasks must be picklable where there are other processes. `check` is called
    several times a second while tasks go on; what it raises ends the pool. What a task raises is
    raised, with the worker's traceback as a note. Raises `RuntimeError` where a task's workers died
    again and again. The workers are gone when the block ends, however it ends.

    With `is_timing` a task has a machine to itself and all the threads that this process has;
    raises `ValueError` where two would share one.
    """
    if is_timing and not workers.ray and workers.workers > 1:
        raise ValueError(
            f"--workers {workers.workers}: what is measured here is time, and processes of one "
            "machine would slow one another; leave it at 0, or give --ray with nodes of the same "
            "hardware"
        )
    if workers.ray:
        from fretsaw.distributed.ray import ray_pool

        with ray_pool(prepare, workers, device, check, is_timing=is_timing) as map_tasks:
            yield map_tasks
    elif workers.workers > 1:
        processes = Processes(prepare, workers.workers, device, check)
        try:
            yield processes.map
        finally:
            processes.kill()
    else:
        with one_thread() if workers.workers == 1 else contextlib.nullcontext():
            yield functools.partial(_here, functools.cache(prepare), check)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums are then taken in the same order by every worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _here(
    prepare: Prepare, check: Callable[[], None], tasks: Sequence[Any], hear: Hear = ignore
) -> Iterator[tuple[int, Any]]:
    for index, task in enumerate(tasks):
        check()
        yield index, prepare()(task, functools.partial(hear, index))


# --- processes of this machine --------------------------------------------------------------------


class Worker:
    """A process, the way to talk to it, and the task it is at."""

    def __init__(self, prepare: Prepare, number: int, device: str):
        context = multiprocessing.get_context("spawn")  # a fork would share locks and CUDA
        self.connection, its_end = context.Pipe()
        self.task: int | None = None
        self.process = context.Process(
            target=_work, args=(its_end, prepare, number, device), daemon=True
        )
        self.process.start()
        its_end.close()  # so that its death is read here as the end of what it says

    def give(self, index: int, task: Any) -> None:
        """Have it do a task; where it is dead, that is noticed when it is listened to."""
        self.task = index
        with contextlib.suppress(OSError):
            self.connection.send(task)

    def kill(self) -> None:
        """End it at once; it has nothing to save."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class Processes:
    """A pool of processes, started when there is something for them to do."""

    def __init__(self, prepare: Prepare, count: int, device: str, check: Callable[[], None]):
        self.prepare, self.count, self.device, self.check = prepare, count, device, check
        self.workers: dict[int, Worker] = {}  # by number

    def map(self, tasks: Sequence[Any], hear: Hear = ignore) -> Iterator[tuple[int, Any]]:
        """Give every idle worker the next task, and a lost one's task to the next that is idle."""
        todo, losses = deque(range(len(tasks))), Counter[int]()
        while todo or any(worker.task is not None for worker in self.workers.values()):
            for number in range(self.count):
                if not todo:
                    break
                if number not in self.workers:
                    self.workers[number] = Worker(self.prepare, number, self.device)
                if self.workers[number].task is None:
                    index = todo.popleft()
                    self.workers[number].give(index, tasks[index])
            self.check()
            for number, message in self._listen():
                index = self.workers[number].task
                match message:
                    case ("said", said):
                        assert index is not None, "only who has a task speaks"
                        hear(index, said)
                    case ("did", result):
                        assert index is not None, "only who has a task is done with it"
                        self.workers[number].task = None
                        yield index, result
                    case ("raised", error):
                        raise error
                    case None:
                        exit_code = self._bury(number)
                        if index is None:
                            continue
                        losses[index] += 1
                        if losses[index] > MAX_LOSSES:
                            raise lost(index, tasks[index], losses[index], f"exit code {exit_code}")
                        say(f"a worker died (exit code {exit_code}); its task is done again")
                        todo.appendleft(index)

    def _listen(self) -> Iterator[tuple[int, Any]]:
        """Yield (worker, what it says) of those that have spoken, None of those that have died."""
        numbers = {worker.connection: n for n, worker in self.workers.items()}
        for connection in wait(list(numbers), timeout=CHECK_EVERY_S):
            assert isinstance(connection, Connection)
            try:
                yield numbers[connection], connection.recv()
            except (EOFError, OSError):
                yield numbers[connection], None

    def _bury(self, number: int) -> int | None:
        worker = self.workers.pop(number)
        worker.process.join()
        return worker.process.exitcode

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self.workers.values():
            worker.kill()
        self.workers.clear()


def _work(connection: Connection, prepare: Prepare, number: int, device: str) -> None:
    """Do what comes in, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(number % torch.cuda.device_count())
    prepare = functools.cache(prepare)

    def tell(said: Any) -> None:
        connection.send(("said", said))

    with contextlib.suppress(EOFError):
        while True:
            task = connection.recv()
            connection.send(attempt(lambda task=task: prepare()(task, tell)))


def _follow_parent() -> None:
    """End when the process that gives the tasks does, even in the middle of one."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by another process"
    parent.join()
    os._exit(1)
