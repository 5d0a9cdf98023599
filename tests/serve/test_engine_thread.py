"""The thread that owns the engine: jobs, drops, tokens put in, a failure, a full queue, the end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from engines import ask
from serving import asking, local

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.engine import Engine
from fretsaw.engine.sequence import Event
from fretsaw.serve.engine_thread import (
    FORCED_LOGPROB,
    Closing,
    EngineFailed,
    EngineThread,
    Job,
    QueueFull,
)

PROMPT = (0, 5, 6, 7)
Result = TypeVar("Result")


@pytest.fixture
def engine(toggled: Path) -> Engine:
    return Engine(checkpoint.load(toggled), max_batch=4)


def run(
    engine: Engine, work: Callable[[EngineThread], Awaitable[Result]], *, max_open: int = 8
) -> Result:
    """Run some work with a worker that is started before and closed after it."""

    async def whole() -> Result:
        worker = EngineThread(engine, max_open=max_open)
        worker.start()
        try:
            return await asyncio.wait_for(work(worker), timeout=30)
        finally:
            await worker.close(grace_s=0)

    return asyncio.run(whole())


async def gather(job: Job) -> list[list[Event]]:
    """Return all events of a job, request by request."""
    found: list[list[Event]] = [[] for _ in job.requests]
    async with job:
        async for arrived in job.events():
            for index, event in arrived:
                found[index].append(event)
            if all(events and events[-1].finish_reason for events in found):
                return found
    raise AssertionError("unreachable")


def test_jobs_side_by_side(engine: Engine) -> None:
    async def work(worker: EngineThread) -> list[list[list[Event]]]:
        jobs = [
            await worker.submit(
                [
                    ask(PROMPT, length),
                    ask(PROMPT[:2], 3),
                ]
            )
            for length in (1, 7, 12)
        ]
        found = await asyncio.gather(*map(gather, jobs))
        assert worker.num_open == 0
        return found

    for length, (first, second) in zip((1, 7, 12), run(engine, work), strict=True):
        assert [len(first), len(second)] == [length, 3]
        assert first[-1].finish_reason == second[-1].finish_reason == "length"


def test_leaving_a_job_frees_its_pages(engine: Engine) -> None:
    async def work(worker: EngineThread) -> None:
        job = await worker.submit([ask(PROMPT, 200)] * 3)
        async with job:
            async for _ in job.events():
                break
            job.drop(1)
            job.drop(1)  # once is enough
            assert worker.num_open == 2
        job.drop(0)
        assert worker.num_open == 0
        await until(lambda: worker.stats.pages_used == 0)

    run(engine, work)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def test_a_client_that_leaves_before_it_is_accepted(engine: Engine) -> None:
    async def work(worker: EngineThread) -> None:
        submitting = [asyncio.create_task(worker.submit([ask(PROMPT, 200)])) for _ in range(4)]
        await asyncio.sleep(0)
        for task in submitting:
            task.cancel()
        await asyncio.gather(*submitting, return_exceptions=True)
        assert worker.num_open == 0
        await until(lambda: worker.stats.pages_used == 0 and not engine.has_work)

    run(engine, work)


def test_all_requests_of_a_job_run_or_none(engine: Engine) -> None:
    async def work(worker: EngineThread) -> None:
        with pytest.raises(ValueError, match="context"):
            await worker.submit(
                [
                    ask(PROMPT, 200),
                    ask(PROMPT, 10_000),
                ]
            )
        assert worker.num_open == 0
        await until(lambda: worker.stats.pages_used == 0)
        assert not engine.has_work

    run(engine, work)


def test_tokens_that_are_put_in_come_as_events_in_their_place(engine: Engine) -> None:
    seen: list[int] = []

    def watch(token_id: int) -> Sequence[int]:
        seen.append(token_id)
        return (11, 12) if len(seen) == 3 else ()

    async def work(worker: EngineThread) -> list[list[Event]]:
        requests = [
            ask(PROMPT, 10),
            ask(PROMPT, 10),
        ]
        return await gather(await worker.submit(requests, [watch, None]))

    watched, plain = run(engine, work)
    ids, own = ([event.token_id for event in events] for events in (watched, plain))
    assert ids[:3] == own[:3]
    assert ids[3:5] == [11, 12]
    assert {event.logprob for event in watched[3:5]} == {FORCED_LOGPROB}
    assert len(ids) == 10  # they count
    assert seen == [*ids[:3], *ids[5:-1]]
    context = [*PROMPT, *ids[:5]]
    with torch.inference_mode():
        logits = engine.decoder(torch.tensor([context]))[0, -1]
    assert ids[5] == int(logits.argmax())  # the answer goes on from them


def test_nothing_is_put_in_where_no_room_would_be_left(engine: Engine) -> None:
    async def work(worker: EngineThread) -> list[list[Event]]:
        watches = [lambda id: (11, 12)]
        return await gather(await worker.submit([ask(PROMPT, 3)], watches))

    (events,) = run(engine, work)
    assert all(event.logprob != FORCED_LOGPROB for event in events)
    assert len(events) == 3


def test_a_full_queue_and_a_closing_one(engine: Engine) -> None:
    async def work(worker: EngineThread) -> None:
        job = await worker.submit([ask(PROMPT, 100)] * 3)
        with pytest.raises(QueueFull):
            await worker.submit([ask(PROMPT, 1)])
        closing = asyncio.create_task(worker.close(grace_s=30))
        await asyncio.sleep(0)
        with pytest.raises(Closing):
            await worker.submit([ask(PROMPT, 1)])
        found = await gather(job)
        assert [len(events) for events in found] == [100] * 3  # what ran was finished
        await closing

    run(engine, work, max_open=3)


def test_past_the_deadline_what_runs_is_told(engine: Engine) -> None:
    async def work(worker: EngineThread) -> None:
        job = await worker.submit([ask(PROMPT, 250)])
        await worker.close(grace_s=0)
        with pytest.raises(Closing):
            await gather(job)

    run(engine, work)


def test_a_failure_of_the_engine_reaches_everyone(engine: Engine, capsys) -> None:
    async def work(worker: EngineThread) -> None:
        jobs = [await worker.submit([ask(PROMPT, 250)]) for _ in range(2)]
        worker._orders.put(fail)
        for job in jobs:
            with pytest.raises(EngineFailed, match="a broken kernel"):
                await gather(job)
        with pytest.raises(EngineFailed):
            await worker.submit([ask(PROMPT, 1)])
        assert worker.num_open == 0

    run(engine, work)
    assert "a broken kernel" in capsys.readouterr().err


def fail() -> None:
    raise RuntimeError("a broken kernel")


def test_a_failure_of_the_engine_over_http(toggled: Path, capsys) -> None:
    with local(toggled) as server:
        server.service.worker._orders.put(fail)
        for _ in range(2):
            response = server.client.post("/v1/chat/completions", json=asking())
            assert response.status_code == 500
            assert response.json()["error"]["code"] == "engine_failed"
        health = server.client.get("/health")
        assert health.status_code == 503
        assert health.json()["error"]["code"] == "engine_failed"
        assert server.client.get("/v1/models").status_code == 200
    assert "a broken kernel" in capsys.readouterr().err
