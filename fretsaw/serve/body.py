"""A request's body: how much of it is read, and what must be JSON."""

import asyncio
from typing import Any

from fastapi import Request

from fretsaw.serve.errors import ApiError, bad_request
from fretsaw.serve.protocol import Body, parse
from fretsaw.serve.settings import Limits
from fretsaw.stage.json_text import LoneSurrogate, NotJson, parse_json

DRAINED = 8  # times the limit: so much of a body is read and thrown away, for its sender to listen


async def read_body(request: Request, kind: type[Body], limits: Limits) -> Body:
    """Return a request's JSON as its checked fields; raise the refusal of anything else."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise ApiError(
            415,
            f"content-type {content_type!r}: the body is read as JSON; send application/json",
            code="unsupported_media_type",
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(
            415, "content-encoding: send the body as it is", code="unsupported_media_type"
        )
    return parse(_object(await _read(request, limits)), kind)


async def _read(request: Request, limits: Limits) -> bytes:
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read_within(request, limits.max_body_bytes)
    except TimeoutError as error:
        raise ApiError(
            408,
            f"the body took more than {limits.body_timeout_s:g} s to arrive; send it faster",
            code="body_timeout",
        ) from error


async def _read_within(request: Request, limit: int) -> bytes:
    """Return the body, or raise once what exceeds the limit was read and thrown away.

    A sender that is refused in the middle of sending often sees a reset connection and never the
    reason, so a body that is not absurdly long is let in to its end first.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > DRAINED * limit:
        raise _too_large(limit)
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > DRAINED * limit:
            raise _too_large(limit)
        if size <= limit:
            body += chunk
        else:
            body.clear()
    if size > limit:
        raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"the body is over {limit / 2**20:g} MiB; send less", code="body_too_large"
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8 (byte {error.start}); encode it as UTF-8"
        raise bad_request(message, None, "invalid_utf8") from error
    try:
        value = parse_json(text)
    except LoneSurrogate as error:
        name = error.where.partition(".")[0].partition("[")[0]
        raise bad_request(str(error), name, "invalid_utf8") from error
    except NotJson as error:
        raise bad_request(f"the body is {error}", None, "invalid_json") from error
    except ValueError as error:
        message = f"the body is not JSON that is served: {error}"
        raise bad_request(message, None, "invalid_json") from error
    if not isinstance(value, dict):
        raise bad_request("the body is JSON, but no object; send {...}", None, "invalid_json")
    return value
