"""What every route works with, and what chat completions and completions have in common."""

import asyncio
import hashlib
import json
import os
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fretsaw.engine.sequence import Event, Request
from fretsaw.serve.answer import Answer, Pieces
from fretsaw.serve.errors import ApiError, bad_request
from fretsaw.serve.metrics import Metrics, Stopwatch
from fretsaw.serve.model import ServedModel
from fretsaw.serve.protocol import MAX_STOP_STRINGS, Sampling
from fretsaw.serve.settings import Limits
from fretsaw.serve.worker import Closing, EngineFailed, Job, QueueFull, Watch, Worker

LONG = 16_384  # characters of a text that takes milliseconds to encode
RETRY_AFTER = {"Retry-After": "1"}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    """A model, the thread that runs it, and what clients may ask of it."""

    model: ServedModel
    worker: Worker
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    processes: Mapping[str, int] = field(default_factory=lambda: {"server": os.getpid()})


# --- from a request's fields to the engine's ------------------------------------------------------


def check_model(service: Service, name: str | None) -> None:
    """Raise 404 where a request names another model; none named is the one there is."""
    if name is not None and name != service.model.name:
        raise ApiError(
            404,
            f"model {name!a}: not served here; {service.model.name!r} is",
            param="model",
            code="model_not_found",
        )


def check_counts(service: Service, n: int, num_prompts: int) -> None:
    """Raise where a request asks for more answers than it may."""
    limits = service.limits
    if n > limits.max_n:
        raise bad_request(f"n: {n}; give at most {limits.max_n}", "n", "invalid_value")
    if n * num_prompts > limits.max_choices:
        raise bad_request(
            f"{num_prompts} prompts times {n} answers; give at most {limits.max_choices} "
            "in one request",
            "n" if n > 1 else "prompt",
            "invalid_value",
        )


def engine_requests(
    service: Service,
    body: Sampling,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: Sequence[int],
    **more: Any,
) -> list[Request]:
    """Return the engine's requests, the `n` answers to a prompt side by side.

    The first answer to a prompt has the request's own seed, the others seeds that follow from it;
    without one every answer has a seed of its own.
    """
    model = service.model
    defaults = model.defaults
    own = {
        name: getattr(defaults if getattr(body, name) is None else body, name)
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    }
    own["top_k"] = max(own["top_k"], 0)
    ends = () if body.ignore_eos else model.config.eos_token_ids
    for id in body.stop_token_ids:
        check_id(model, id, "stop_token_ids")
    seed = secrets.randbits(62) if body.seed is None else body.seed
    return [
        Request(
            prompt,
            room,
            seed=(seed if index == 0 else _seed(seed, index)) % 2**63,
            stop_token_ids=tuple(dict.fromkeys((*ends, *body.stop_token_ids))),
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            **own,
            **more,
        )
        for prompt, room in zip(prompts, max_tokens, strict=True)
        for index in range(body.n)
    ]


def _seed(seed: int, index: int) -> int:
    """Return 63 bits that follow from a request's seed and the index among its answers."""
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def stop_strings(service: Service, body: Sampling) -> tuple[str, ...]:
    """Return the stop strings that must be looked for, at most four."""
    strings = service.model.stop_strings(body.stop)
    if len(strings) > MAX_STOP_STRINGS:
        raise bad_request(
            f"stop: {len(strings)} strings; give at most {MAX_STOP_STRINGS}",
            "stop",
            "invalid_value",
        )
    return strings


def room_after(
    service: Service, prompt: Sequence[int], asked: int | None, *, prompt_param: str, param: str
) -> int:
    """Return how many tokens may follow a prompt; None asked is all there is room for."""
    context, most = service.model.context, service.limits.max_tokens
    room = context - len(prompt)
    if room < 1 and asked != 0:
        raise bad_request(
            f"{prompt_param}: {len(prompt)} tokens, but the context is {context} and an "
            "answer needs room in it; send less",
            prompt_param,
            "context_length_exceeded",
        )
    if asked is None:
        return min(room, most or room)
    if most is not None and asked > most:
        raise bad_request(f"{param}: {asked}; give at most {most}", param, "invalid_value")
    if asked > room:
        raise bad_request(
            f"{param}: {asked} after a prompt of {len(prompt)} tokens, but the context is "
            f"{context}; give at most {room}",
            param,
            "context_length_exceeded",
        )
    return asked


def check_hope(model: ServedModel, text: str, param: str) -> None:
    """Raise where a text's beginning alone is twice the context; the rest is then not even read.

    What a few megabytes of text take while they are encoded is a hundred times their size.
    """
    length = 16 * model.context + LONG
    if len(text) > length and len(model.tokenizer.encode(text[:length])) > 2 * model.context:
        raise bad_request(
            f"{param}: {len(text)} characters, far more than the context of {model.context} tokens "
            "holds; send less",
            param,
            "context_length_exceeded",
        )


def check_id(model: ServedModel, id: int, param: str) -> None:
    """Raise where a token id is not in the vocabulary."""
    if not 0 <= id < model.config.vocab_size:
        raise bad_request(
            f"{param}: no token {id}; ids are from 0 to {model.config.vocab_size - 1}",
            param,
            "invalid_value",
        )


async def in_thread_if_long(size: int, work: Callable[[], Result]) -> Result:
    """Return what the work returns; for so many characters, in a thread, so that others go on."""
    return await asyncio.to_thread(work) if size > LONG else work()


async def submit(
    service: Service,
    requests: Sequence[Request],
    watches: Sequence[Watch | None] | None = None,
) -> Job:
    """Give the engine the requests; turn what hinders it into what the client is told."""
    try:
        return await service.worker.submit(requests, watches)
    except ValueError as error:
        raise bad_request(str(error), None, "invalid_value") from error
    except (QueueFull, Closing, EngineFailed) as error:
        raise told(error) from error


def told(error: Exception) -> ApiError:
    """Return what a client is told when its answer cannot be had."""
    match error:
        case QueueFull():
            message = "too many answers wait already; try again in a moment"
            return ApiError(429, message, code="queue_full", headers=RETRY_AFTER)
        case Closing():
            message = "the server is shutting down; try another, or again in a moment"
            return ApiError(503, message, code="shutting_down", headers=RETRY_AFTER)
        case EngineFailed():
            message = "the engine failed and answers no more; the server must be started again"
            return ApiError(500, message, code="engine_failed")
    raise error


# --- from the engine's events to the client -------------------------------------------------------


@dataclass
class Growth:
    """What one answer gained at once: text by kind, and the events behind it."""

    pieces: Pieces
    events: list[Event]


async def growth(
    job: Job, answers: Sequence[Answer], watch: Stopwatch
) -> AsyncIterator[dict[int, Growth]]:
    """Yield what the answers gain, by index, until all have ended.

    What has come meanwhile is taken together, so a slow reader gets fewer and larger pieces. An
    answer that a stop string ends is dropped from the engine.
    """
    async for arrived in job.events():
        grown: dict[int, Growth] = {}
        for index, event in arrived:
            answer = answers[index]
            if answer.finish_reason is not None:
                continue  # generated before the engine heard that a stop string had ended it
            gain = grown.setdefault(index, Growth([], []))
            gain.events.append(event)
            for kind, text in answer.feed(event):
                if gain.pieces and gain.pieces[-1][0] == kind:
                    gain.pieces[-1] = (kind, gain.pieces[-1][1] + text)
                else:
                    gain.pieces.append((kind, text))
            if answer.finish_reason is not None and event.finish_reason is None:
                job.drop(index)
        for index, gain in grown.items():
            watch.take(index, len(gain.events))
        if grown:
            yield grown
        if all(answer.finish_reason is not None for answer in answers):
            watch.stop()
            return


class Gone(Exception):
    """The client has left."""


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """Return what the work returns; stop it and raise `Gone` if the client leaves first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events from a job, which is dropped when the client leaves."""

    def __init__(self, service: Service, job: Job, chunks: AsyncIterator[bytes]):
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._service, self._job, self._chunks = service, job, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with self._job:
            try:
                await unless_gone(receive, self._write(send))
            except Gone:
                self._service.metrics.disconnects += 1

    async def _write(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            async for chunk in self._chunks:
                if chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except (Closing, EngineFailed) as error:
            failed = sse(told(error).body)
            await send({"type": "http.response.body", "body": failed, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def whole(
    service: Service, http: HttpRequest, job: Job, reading: Awaitable[dict[str, Any]]
) -> Response:
    """Return the response of a request that does not stream, once all is there."""
    async with job:
        try:
            return JsonResponse(await unless_gone(http.receive, reading))
        except Gone:
            service.metrics.disconnects += 1
            return Response(status_code=499)  # nobody reads it; nginx's "client closed request"
        except (Closing, EngineFailed) as error:
            raise told(error) from error


class JsonResponse(Response):
    """A JSON body in plain ASCII, so that every reader reads it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body's bytes."""
        return to_json(content)


def to_json(value: Any) -> bytes:
    """Return compact JSON in ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def sse(value: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Head:
    """The fields that all parts of a response begin with."""

    id: str
    model: str
    version: int
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, service: Service, prefix: str) -> "Head":
        """Return a new one."""
        version = service.worker.stats.weight_version
        return cls(f"{prefix}-{uuid.uuid4().hex}", service.model.name, version)

    def __call__(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a response, or a part of one."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"weights-{self.version}",
            "choices": choices,
        }


def usage(num_prompt: int, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the counts of a response; a prompt counts once, whatever its number of answers."""
    num_generated = sum(answer.num_tokens for answer in answers)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
        "completion_tokens_details": {
            "reasoning_tokens": sum(answer.num_reasoning_tokens for answer in answers)
        },
    }


def merged(head: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return a response with more fields."""
    return {**head, **more}
