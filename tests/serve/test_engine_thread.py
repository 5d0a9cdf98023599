"""The thread that owns the engine: jobs, drops, tokens put in, a failure, a full queue, the end."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from engines import ask
from patience import patient
from serving import asking, local

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.engine import Engine
from fretsaw.engine.sequence import Event
from fretsaw.serve import engine_thread
from fretsaw.serve.engine_thread import (
    FORCED_LOGPROB,
    MAX_RESTARTS,
    AnswerFailed,
    Closing,
    EngineFailed,
    EngineRestarting,
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
    engine: Engine,
    work: Callable[[EngineThread], Awaitable[Result]],
    *,
    max_open: int = 8,
    restart: Callable[[], Engine] | None = None,
) -> Result:
    """Run some work with a worker that is started before and closed after it."""

    async def whole() -> Result:
        worker = EngineThread(engine, max_open=max_open, restart=restart)
        worker.start()
        try:
            return await asyncio.wait_for(work(worker), timeout=patient(30))
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
    async with asyncio.timeout(patient(10)):
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


def test_an_engine_that_is_lost_is_told_of_and_replaced(engine: Engine, capsys) -> None:
    restarting, may_restart = threading.Event(), threading.Event()

    def restart() -> Engine:
        restarting.set()
        may_restart.wait()
        return Engine(engine.decoder, max_batch=4)

    async def work(worker: EngineThread) -> None:
        jobs = [await worker.submit([ask(PROMPT, 250)] * 2) for _ in range(2)]
        worker._orders.put(fail)
        late = asyncio.create_task(worker.submit([ask(PROMPT, 250)]))  # behind it in the queue
        for job in jobs:
            with pytest.raises(EngineRestarting):
                await gather(job)
        with pytest.raises(EngineRestarting):
            await late
        await until(restarting.is_set)
        with pytest.raises(EngineRestarting):
            await worker.submit([ask(PROMPT, 1)])
        assert worker.is_restarting
        assert worker.num_open == 0
        may_restart.set()
        await until(lambda: not worker.is_restarting)
        (events,) = await gather(await worker.submit([ask(PROMPT, 9)]))
        assert len(events) == 9
        assert (worker.num_restarts, worker.failure) == (1, None)
        await until(lambda: worker.stats.pages_used == 0 and not worker._engine.has_work)

    run(engine, work, restart=restart)
    log = capsys.readouterr().err
    assert "a broken kernel" in log
    assert "serve: the engine is lost (RuntimeError('a broken kernel')); starting it again" in log
    assert "serve: the engine is back" in log


def test_an_engine_that_is_lost_again_and_again_is_given_up(engine: Engine, capsys) -> None:
    async def work(worker: EngineThread) -> None:
        for number in range(MAX_RESTARTS):
            worker._orders.put(fail)
            await until(lambda number=number: worker.num_restarts == number + 1)
            await gather(await worker.submit([ask(PROMPT, 2)]))
        job = await worker.submit([ask(PROMPT, 250)])
        worker._orders.put(fail)
        with pytest.raises(EngineFailed, match="a broken kernel"):
            await gather(job)
        await asyncio.wait_for(worker.has_failed.wait(), timeout=10)
        assert not worker.is_restarting

    run(engine, work, restart=lambda: engine)


def test_an_engine_that_lived_long_is_always_replaced(engine: Engine, monkeypatch, capsys) -> None:
    monkeypatch.setattr(engine_thread, "SHORT_LIFE_S", 0.0)

    async def work(worker: EngineThread) -> None:
        for number in range(2 * MAX_RESTARTS):
            worker._orders.put(fail)
            await until(lambda number=number: worker.num_restarts == number + 1)

    run(engine, work, restart=lambda: engine)


def test_an_engine_that_cannot_be_started_again_is_given_up(engine: Engine, capsys) -> None:
    def restart() -> Engine:
        raise ValueError("the checkpoint is gone")

    async def work(worker: EngineThread) -> None:
        worker._orders.put(fail)
        await asyncio.wait_for(worker.has_failed.wait(), timeout=10)
        with pytest.raises(EngineFailed, match="the checkpoint is gone"):
            await worker.submit([ask(PROMPT, 1)])

    run(engine, work, restart=restart)


def test_closing_does_not_wait_for_a_restart(engine: Engine, capsys) -> None:
    def restart() -> Engine:
        time.sleep(5)
        return engine

    async def work(worker: EngineThread) -> None:
        worker._orders.put(fail)
        await until(lambda: worker.is_restarting)
        await asyncio.wait_for(worker.close(grace_s=60), timeout=10)

    run(engine, work, restart=restart)


def test_closing_before_the_loss_is_told_of_does_not_wait_either(engine: Engine, capsys) -> None:
    restarting = threading.Event()

    def restart() -> Engine:
        restarting.set()
        time.sleep(5)
        return engine

    async def work(worker: EngineThread) -> None:
        worker._orders.put(fail)
        restarting.wait(timeout=patient(20))  # the loop stands still, so it has heard of nothing
        await asyncio.wait_for(worker.close(grace_s=60), timeout=4)

    run(engine, work, restart=restart)


def test_an_answer_that_fails_fails_alone(engine: Engine, capsys) -> None:
    poison(engine, 11)

    def watch(token_id: int) -> Sequence[int]:
        raise KeyError("a broken watch")

    async def work(worker: EngineThread) -> None:
        good = await worker.submit([ask(PROMPT, 60)])
        bad = await worker.submit([ask(PROMPT, 60), ask((*PROMPT, 11), 60)])
        with pytest.raises(AnswerFailed, match="logits are not finite"):
            await gather(bad)
        watched = await worker.submit([ask(PROMPT, 60)], [watch])
        with pytest.raises(AnswerFailed, match="KeyError: 'a broken watch'"):
            await gather(watched)
        (events,) = await gather(good)
        assert len(events) == 60
        assert worker.num_failed == 2
        with pytest.raises(AnswerFailed, match="logits are not finite"):
            await gather(await worker.submit([ask((*PROMPT, 11), 60)] * 3))
        assert worker.num_failed == 3  # requests, of however many answers
        assert worker.num_open == 0
        await until(lambda: worker.stats.pages_used == 0 and not engine.has_work)

    run(engine, work)
    assert "a broken watch" in capsys.readouterr().err


def poison(engine: Engine, token_id: int) -> None:
    """Let every text that contains a token turn to NaN."""
    weights = engine.decoder.model.embed_tokens.weight.detach().clone()
    weights[token_id] = torch.nan
    engine.load_weights([("model.embed_tokens.weight", weights)], version=0)


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


def test_a_lost_engine_over_http(toggled: Path, capsys) -> None:
    may_restart = threading.Event()

    def restart() -> Engine:
        may_restart.wait(30)
        return server.engine

    with local(toggled) as server:
        client, worker = server.client, server.service.worker
        worker._restart = restart
        worker._orders.put(fail)
        for response in (
            client.post("/v1/chat/completions", json=asking()),
            client.post("/v1/completions", json={"prompt": "Blue"}),
            client.get("/health"),
        ):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_restarting"
            assert response.headers["retry-after"] == "5"
        may_restart.set()
        deadline = time.monotonic() + 20
        while client.get("/health").status_code != 200:
            assert time.monotonic() < deadline
        assert server.chat()["finish_reason"] == "stop"
        assert "fretsaw_engine_restarts_total 1\n" in client.get("/metrics").text


def test_a_failed_answer_over_http(toggled: Path) -> None:
    with local(toggled) as server:
        poison(server.engine, 11)
        bad = {"prompt": [[5, 6, 7], [5, 11, 7]], "n": 2, "max_tokens": 20}
        for path in ("whole", "streamed"):
            response = server.client.post(
                "/v1/completions", json={**bad, "stream": path != "whole"}
            )
            if path == "whole":
                assert response.status_code == 500
                error = response.json()["error"]
            else:
                *_, last = filter(None, response.text.split("\n"))
                error = json.loads(last.removeprefix("data: "))["error"]
            assert error["code"] == "answer_failed"
            assert "the model's logits are not finite" in error["message"]
            assert server.client.get("/health").json() == {"status": "ok"}
        assert server.post("/v1/completions", {"prompt": [5, 6, 7]})["usage"]
        metrics = server.client.get("/metrics").text
        assert "fretsaw_failed_requests_total 2\n" in metrics
        assert "fretsaw_open_answers 0\n" in metrics


def test_numbers_that_no_sampler_holds_are_refused(toggled: Path) -> None:
    with local(toggled) as server:
        for name, value in (
            ("top_k", 99999999999999999999),
            ("repetition_penalty", 1e-320),
            ("temperature", 1e300),
        ):
            response = server.client.post("/v1/chat/completions", json={**asking(), name: value})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == name
        drawn = {"top_k": 2**62, "temperature": 1e-300, "repetition_penalty": 0.01, "min_p": 1e-300}
        assert server.chat(max_tokens=5, **drawn)["finish_reason"] == "length"
