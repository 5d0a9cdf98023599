"""The choices of a response: answers as an API tells them, filled by the engine's events."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from fastapi import Request as HttpRequest
from starlette.responses import Response

from fretsaw.engine.sequence import Event, Request
from fretsaw.serve.answer import Answer, Pieces
from fretsaw.serve.engine_thread import Closing, EngineFailed, Job, QueueFull, Watch
from fretsaw.serve.errors import bad_request, told
from fretsaw.serve.metrics import Stopwatch
from fretsaw.serve.protocol import GenerationRequest
from fretsaw.serve.response import EventStream, sse, whole_response
from fretsaw.serve.service import Service

DONE = b"data: [DONE]\n\n"


@runtime_checkable
class AnswerChoice(Protocol):
    """One answer as an API tells it."""

    answer: Answer

    def take(self, pieces: Pieces, events: Sequence[Event]) -> None:
        """Take what the answer gained."""
        ...

    def whole(self) -> dict[str, Any]:
        """Return it as it ended."""
        ...

    def opening(self) -> list[dict[str, Any]]:
        """Return what a stream tells of it before any token."""
        ...

    def chunks(self, pieces: Pieces) -> list[dict[str, Any]]:
        """Return what a stream tells of it once it has taken some pieces."""
        ...


async def respond(
    service: Service,
    http: HttpRequest,
    body: GenerationRequest,
    requests: Sequence[Request],
    choices: Sequence[AnswerChoice],
    *,
    prefix: str,
    kind: str,
    num_prompt: int,
    watches: Sequence[Watch | None] | None = None,
) -> Response:
    """Have the requests run, and answer with the choices they fill, at once or as a stream."""
    stopwatch = Stopwatch(service.metrics, len(choices))
    job = await _submit(service, requests, watches)
    service.metrics.prompt_tokens += num_prompt
    head = Head.of(service, prefix, kind)
    grown = growth(job, choices, stopwatch)
    if body.stream:
        tells_usage = body.stream_options.include_usage
        chunks = _streamed(head, choices, grown, num_prompt, tells_usage=tells_usage)
        return EventStream(service, job, chunks)
    return await whole_response(service, http, job, _gathered(head, choices, grown, num_prompt))


async def _submit(
    service: Service, requests: Sequence[Request], watches: Sequence[Watch | None] | None
) -> Job:
    """Give the engine the requests; turn what hinders it into what the client is told."""
    try:
        return await service.worker.submit(requests, watches)
    except ValueError as error:
        raise bad_request(str(error), None, "invalid_value") from error
    except (QueueFull, Closing, EngineFailed) as error:
        raise told(error) from error


@dataclass
class Growth:
    """What one answer gained at once: text by kind, and the events behind it."""

    pieces: Pieces = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


async def growth(
    job: Job, choices: Sequence[AnswerChoice], stopwatch: Stopwatch
) -> AsyncIterator[dict[int, Growth]]:
    """Let the choices take what comes; yield what they gained, by index, until all have ended.

    What has come meanwhile is taken together, so a slow reader gets fewer and larger pieces. An
    answer that a stop string ends is dropped from the engine.
    """
    async for arrived in job.events():
        grown: dict[int, Growth] = {}
        for index, event in arrived:
            answer = choices[index].answer
            if answer.finish_reason is not None:
                continue  # generated before the engine heard that a stop string had ended it
            gain = grown.setdefault(index, Growth())
            gain.events.append(event)
            for kind, text in answer.feed(event):
                if gain.pieces and gain.pieces[-1][0] == kind:
                    gain.pieces[-1] = (kind, gain.pieces[-1][1] + text)
                else:
                    gain.pieces.append((kind, text))
            if answer.finish_reason is not None and event.finish_reason is None:
                job.drop(index)
        for index, gain in grown.items():
            stopwatch.take(index, len(gain.events))
            choices[index].take(gain.pieces, gain.events)
        if grown:
            yield grown
        if all(choice.answer.finish_reason is not None for choice in choices):
            stopwatch.stop()
            return


async def _gathered(
    head: "Head",
    choices: Sequence[AnswerChoice],
    grown: AsyncIterator[dict[int, Growth]],
    num_prompt: int,
) -> dict[str, Any]:
    async for _ in grown:
        pass
    return head([choice.whole() for choice in choices], usage=usage(num_prompt, choices))


async def _streamed(
    head: "Head",
    choices: Sequence[AnswerChoice],
    grown: AsyncIterator[dict[int, Growth]],
    num_prompt: int,
    *,
    tells_usage: bool,
) -> AsyncIterator[bytes]:
    yield b"".join(sse(head([chunk])) for choice in choices for chunk in choice.opening())
    async for gains in grown:
        yield b"".join(
            sse(head([chunk]))
            for index, gain in gains.items()
            for chunk in choices[index].chunks(gain.pieces)
        )
    if tells_usage:
        yield sse(head([], usage=usage(num_prompt, choices)))
    yield DONE


@dataclass(frozen=True)
class Head:
    """The fields that all parts of a response begin with."""

    id: str
    kind: str
    model: str
    version: int
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, service: Service, prefix: str, kind: str) -> "Head":
        """Return a new one."""
        version = service.worker.stats.weight_version
        return cls(f"{prefix}-{uuid.uuid4().hex}", kind, service.model.name, version)

    def __call__(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return a response, or a part of one."""
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"weights-{self.version}",
            "choices": choices,
            **more,
        }


def usage(num_prompt: int, choices: Sequence[AnswerChoice]) -> dict[str, Any]:
    """Return the counts of a response; a prompt counts once, whatever its number of answers."""
    num_generated = sum(choice.answer.num_tokens for choice in choices)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
        "completion_tokens_details": {
            "reasoning_tokens": sum(choice.answer.num_reasoning_tokens for choice in choices)
        },
    }
