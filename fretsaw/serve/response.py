"""The two forms of a response: JSON once all is there, or a stream of events."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fretsaw.serve.engine_thread import Closing, EngineFailed, Job
from fretsaw.serve.errors import told
from fretsaw.serve.service import Service

Result = TypeVar("Result")


async def whole_response(
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


class JsonResponse(Response):
    """A JSON body in plain ASCII, so that every reader reads it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body's bytes."""
        return json_bytes(content)


def json_bytes(value: Any) -> bytes:
    """Return compact JSON in ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def sse(value: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json_bytes(value) + b"\n\n"
