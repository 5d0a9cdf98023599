"""The one thread that owns the engine, and the jobs that the event loop gives it.

Orders go in through a queue and are carried out between two steps; what a step made comes back in
one call of the event loop. If the engine fails, every open job is told, and so is every later one.
"""

import asyncio
import copy
import queue
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, runtime_checkable

from fretsaw.engine.sequence import Event, Request
from fretsaw.engine.stats import Stats

FORCED_LOGPROB = -9999.0  # of a token that was put in, not sampled: OpenAI's "very unlikely"


class EngineFailed(RuntimeError):
    """The engine raised; nothing more will come of it."""


class QueueFull(RuntimeError):
    """As many answers wait as may."""


class Closing(RuntimeError):
    """The server shuts down."""


# Sees every token of an answer right after its step; returns the ids that must follow it now.
Watch = Callable[[int], Sequence[int]]


@runtime_checkable
class Stepped(Protocol):
    """What the thread needs of an engine, be it the engine itself or one in another process."""

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


class Job:
    """Some requests that were asked together; iterating gives what each step made of them.

    An item is a list of (index of the request, event), in order. Leaving the `async with` drops
    what is unfinished.
    """

    def __init__(
        self, worker: "EngineThread", requests: Sequence[Request], watches: Sequence[Watch | None]
    ):
        self.requests, self.watches = tuple(requests), tuple(watches)
        self._worker = worker
        self._arrived: list[tuple[int, Event]] = []
        self._failure: Exception | None = None
        self._wake = asyncio.Event()
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open = set(range(len(self.requests)))  # those that are not finished

    async def __aenter__(self) -> "Job":
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._worker.drop(self)

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Yield what has come, until the caller has enough."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._failure is not None:
                raise self._failure
            arrived, self._arrived = self._arrived, []
            yield arrived

    def drop(self, index: int) -> None:
        """Drop one answer; its pages are free after the step that runs now."""
        self._worker.drop(self, index)

    def _take(self, events: list[tuple[int, Event]]) -> None:
        self._arrived += events
        self._wake.set()

    def _accept(self) -> None:
        if not self._accepted.done():
            self._accepted.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._wake.set()
        if not self._accepted.done():
            self._accepted.set_exception(error)


class EngineThread:
    """Runs an engine in a thread of its own."""

    def __init__(self, engine: Stepped, *, max_open: int):
        self._engine, self._max_open = engine, max_open
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        # Of the event loop:
        self._jobs: set[Job] = set()
        self.num_open = 0  # answers that are not finished
        self.is_closing = False
        self._deadline = 0.0  # of closing
        self.failure: BaseException | None = None
        self.stats: Stats = copy.copy(engine.stats())  # as of the last step
        # Of the thread:
        self._places: dict[int, tuple[Job, int]] = {}  # engine's id -> whose answer it is
        self._ids: dict[Job, dict[int, int]] = {}  # index of the answer -> engine's id
        self._num_made: dict[int, int] = {}  # tokens so far, of answers with a watch

    # --- in the event loop ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; what it makes is handed to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def submit(
        self, requests: Sequence[Request], watches: Sequence[Watch | None] | None = None
    ) -> Job:
        """Give the engine some requests, all or none; return once it has accepted them.

        Raises the engine's ValueError for a request that can never run, `QueueFull`, `Closing` or
        `EngineFailed`.
        """
        if self.failure is not None:
            raise EngineFailed(repr(self.failure))
        if self.is_closing:
            raise Closing
        if self.num_open >= self._max_open:
            raise QueueFull
        job = Job(self, requests, watches or [None] * len(requests))
        self._jobs.add(job)
        self.num_open += len(job.open)
        self._orders.put(lambda: self._add(job))
        try:
            await job._accepted
        except BaseException:  # refused, or the client left before it was accepted
            self.drop(job)
            raise
        return job

    def drop(self, job: Job, index: int | None = None) -> None:
        """Drop one answer of a job, or all that is left of it."""
        if job in self._jobs:
            self._close(job, set(job.open) if index is None else {index})
            self._orders.put(lambda: self._abort(job, index))

    def _close(self, job: Job, finished: set[int]) -> None:
        self.num_open -= len(job.open & finished)
        job.open -= finished
        if not job.open:
            self._jobs.discard(job)

    async def close(self, grace_s: float) -> None:
        """Refuse new work, finish what runs for at most `grace_s` seconds, then end the thread.

        Called again, it does nothing.
        """
        self.is_closing = True
        now = asyncio.get_running_loop().time
        self._deadline = now() + grace_s
        while self._jobs and self.failure is None:
            if now() >= self._deadline:
                for job in list(self._jobs):
                    job._fail(Closing())
                    self.drop(job)
                break
            await asyncio.sleep(0.02)
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join)

    def hurry(self) -> None:
        """Let what still runs while closing wait no longer."""
        self._deadline = 0.0

    def _hand_out(self, made: dict[Job, list[tuple[int, Event]]]) -> None:
        for job, events in made.items():
            if job not in self._jobs:
                continue
            self._close(job, {i for i, event in events if event.finish_reason is not None})
            job._take(events)

    def _fail_all(self, error: BaseException) -> None:
        self.failure = error
        for job in self._jobs:
            job._fail(EngineFailed(repr(error)))
        self._jobs.clear()
        self.num_open = 0

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._carry_out_orders():
                if self._engine.has_work:
                    self._step()
        except BaseException as error:  # whatever it is, nobody may wait for an answer any more
            traceback.print_exception(error, file=sys.stderr)
            self._call(self._fail_all, error)

    def _carry_out_orders(self) -> bool:
        """Carry out what is in the queue, waiting for an order if there is no work; False ends."""
        while not self._orders.empty() or not self._engine.has_work:
            order = self._orders.get()
            if order is None:
                return False
            order()
            self.stats = copy.copy(self._engine.stats())
        return True

    def _add(self, job: Job) -> None:
        ids: dict[int, int] = {}
        try:
            for index, request in enumerate(job.requests):
                ids[index] = self._engine.add(request)
        except ValueError as error:
            for id in ids.values():
                self._engine.abort(id)
            self._call(job._fail, error)
            return
        self._ids[job] = ids
        for index, id in ids.items():
            self._places[id] = (job, index)
        self._call(job._accept)

    def _abort(self, job: Job, index: int | None) -> None:
        ids = self._ids.get(job, {})
        for dropped in list(ids) if index is None else [index]:
            id = ids.get(dropped)
            if id is not None:
                self._engine.abort(id)
                self._forget(id)

    def _forget(self, id: int) -> None:
        job, index = self._places.pop(id)
        self._num_made.pop(id, None)
        del self._ids[job][index]
        if not self._ids[job]:
            del self._ids[job]

    def _step(self) -> None:
        made: dict[Job, list[tuple[int, Event]]] = {}
        came = self._engine.step()
        self.stats = copy.copy(self._engine.stats())  # before anybody hears of what came
        for event in came:
            job, index = self._places[event.request]
            events = made.setdefault(job, [])
            events.append((index, event))
            if event.finish_reason is not None:
                self._forget(event.request)
            elif job.watches[index] is not None:
                events += [(index, forced) for forced in self._watch(job, index, event)]
        if made:
            self._call(self._hand_out, made)

    def _watch(self, job: Job, index: int, event: Event) -> list[Event]:
        """Put in what an answer's watch asks for, where that leaves room to go on."""
        watch, id = job.watches[index], event.request
        assert watch is not None
        assert event.token_id is not None, "a request without tokens has nothing to watch"
        self._num_made[id] = self._num_made.get(id, 0) + 1
        forced = tuple(watch(event.token_id))
        room = job.requests[index].sampling.max_tokens - self._num_made[id]
        if not forced or room <= len(forced):
            return []
        self._engine.force(id, forced)
        self._num_made[id] += len(forced)
        return [Event(id, token_id, FORCED_LOGPROB) for token_id in forced]

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None, "start() comes first"
        self._loop.call_soon_threadsafe(function, *arguments)
