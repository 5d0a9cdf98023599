"""The one thread that owns the engine, and the jobs that the event loop gives it.

Orders go in through a queue and are carried out between two steps; what a step made comes back in
one call of the event loop. An answer that fails fails alone. If the engine is lost, every open job
is told, and another engine takes its place; one that is lost again and again is not replaced.
"""

import asyncio
import copy
import queue
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence

from fretsaw.engine.sequence import Event, Request
from fretsaw.engine.stats import Stats
from fretsaw.serve.stepped import EngineLost, Stepped

MAX_RESTARTS, SHORT_LIFE_S = 3, 60.0  # so many in a row of engines that lived no longer
IDLE_S = 1.0  # after which an engine without work is asked whether it is still there
FORCED_LOGPROB = -9999.0  # of a token that was put in, not sampled: OpenAI's "very unlikely"


class EngineFailed(RuntimeError):
    """What was asked cannot be had of the engine; by itself: never again."""


class EngineRestarting(EngineFailed):
    """The engine was lost, and another is being started in its place."""


class AnswerFailed(EngineFailed):
    """The engine goes on, but could not write this answer."""


class QueueFull(RuntimeError):
    """As many answers wait as may."""


class Closing(RuntimeError):
    """The server shuts down."""


# Sees every token of an answer right after its step; returns the ids that must follow it now.
Watch = Callable[[int], Sequence[int]]


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
    """Runs an engine in a thread of its own; `restart` starts another in place of one lost."""

    def __init__(
        self, engine: Stepped, *, max_open: int, restart: Callable[[], Stepped] | None = None
    ):
        self._engine, self._max_open, self._restart = engine, max_open, restart
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        # Of the event loop:
        self._jobs: set[Job] = set()
        self.num_open = 0  # answers that are not finished
        self.is_closing = False
        self._deadline = 0.0  # of closing
        self.failure: BaseException | None = None  # after which there is no engine any more
        self.has_failed = asyncio.Event()
        self.is_restarting = False
        self.num_restarts = 0
        self.num_failed = 0  # requests of clients, not those lost with an engine
        self.stats: Stats = copy.copy(engine.stats())  # as of the last step
        # Of the thread:
        self._num_short = 0  # engines that lived a short life, one after the other
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
        if self.is_restarting:
            raise EngineRestarting
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
        if not self.is_restarting:  # which may take minutes, and nobody waits for it any more
            await asyncio.to_thread(self._thread.join)

    def hurry(self) -> None:
        """Let what still runs while closing wait no longer."""
        self._deadline = 0.0

    def _hand_out(self, made: dict[Job, list[tuple[int, Event]]]) -> None:
        for job, events in made.items():
            if job not in self._jobs:
                continue
            error = next((event.error for _, event in events if event.error is not None), None)
            if error is not None:
                self._fail(job, error)
                continue
            self._close(job, {i for i, event in events if event.finish_reason is not None})
            job._take(events)

    def _fail(self, job: Job, error: str) -> None:
        """Tell a job that an answer of it failed; the others of its request are dropped with it."""
        self.num_failed += 1
        job._fail(AnswerFailed(error))
        self.drop(job)

    def _fail_all(self, error: BaseException) -> None:
        self.failure = error
        for job in self._jobs:
            job._fail(EngineFailed(repr(error)))
        self._jobs.clear()
        self.num_open = 0
        self.is_restarting = False
        self.has_failed.set()

    def _interrupt(self) -> None:
        """Tell every open job that its engine is lost.

        Orders that were given meanwhile reach the next engine: to add a job, then to abort it.
        """
        for job in list(self._jobs):
            job._fail(EngineRestarting())
            self.drop(job)

    def _resume(self) -> None:
        self.is_restarting = False
        self.num_restarts += 1

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        is_running = True
        while is_running:
            begun = time.monotonic()
            try:
                while is_running := self._carry_out_orders():
                    if self._engine.has_work:
                        self._step()
            except BaseException as error:  # whatever it is, nobody may wait for an answer now
                traceback.print_exception(error, file=sys.stderr)
                is_running = self._replace_engine(error, time.monotonic() - begun)

    def _replace_engine(self, error: BaseException, lived_s: float) -> bool:
        """Start another engine; False where there will be none."""
        for record in (self._places, self._ids, self._num_made):
            record.clear()
        self._num_short = self._num_short + 1 if lived_s < SHORT_LIFE_S else 0
        self.is_restarting = True  # before it is asked for closing, which asks for this in turn
        if self._restart is None or self.is_closing or self._num_short > MAX_RESTARTS:
            self._call(self._fail_all, error)
            return False
        self._call(self._interrupt)
        _log(f"the engine is lost ({error!r}); starting it again")
        begun = time.monotonic()
        try:
            self._engine = self._restart()
        except BaseException as failed:
            if self.is_closing:  # which has ended what was being started
                return False
            traceback.print_exception(failed, file=sys.stderr)
            self._call(self._fail_all, failed)
            return False
        self.stats = copy.copy(self._engine.stats())
        _log(f"the engine is back after {time.monotonic() - begun:.1f} s")
        self._call(self._resume)
        return True

    def _carry_out_orders(self) -> bool:
        """Carry out what is in the queue, waiting for an order if there is no work; False ends."""
        while not self._orders.empty() or not self._engine.has_work:
            try:
                order = self._orders.get(timeout=IDLE_S)
            except queue.Empty:
                continue
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
        except EngineLost:
            raise
        except Exception as error:
            for id in ids.values():
                self._engine.abort(id)
            if isinstance(error, ValueError):
                self._call(job._fail, error)
            else:
                self._call(self._fail, job, _logged(error))
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
                events += [(index, more) for more in self._watched(job, index, event)]
        if made:
            self._call(self._hand_out, made)

    def _watched(self, job: Job, index: int, event: Event) -> list[Event]:
        """Return what follows from an answer's watch; one that raises ends its answer."""
        try:
            return self._watch(job, index, event)
        except EngineLost:
            raise
        except Exception as error:
            self._engine.abort(event.request)
            self._forget(event.request)
            return [Event(event.request, None, 0.0, "error", error=_logged(error))]

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
        if not self._loop.is_closed():  # as it may be once nobody waits for a restart
            self._loop.call_soon_threadsafe(function, *arguments)


def _log(line: str) -> None:
    print(f"serve: {line}", file=sys.stderr, flush=True)


def _logged(error: Exception) -> str:
    """Print an error with its traceback; return it in one line."""
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {error}"
