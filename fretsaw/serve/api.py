"""The application: the server's paths behind keys and counting, with errors in one shape."""

import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Sequence

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fretsaw.serve.engine_thread import Closing, EngineFailed
from fretsaw.serve.errors import ApiError, bad_request, not_here, told
from fretsaw.serve.metrics import Metrics
from fretsaw.serve.response import JsonResponse
from fretsaw.serve.routes import add_routes
from fretsaw.serve.service import Service

OPEN_PATHS = ("/health", "/")  # the page itself asks for the key it then sends


def create_app(
    service: Service, *, api_keys: Sequence[str] = (), allow_origins: Sequence[str] = ()
) -> ASGIApp:
    """Return the application; the service's worker runs as long as it.

    Pages of the allowed origins (`*`: any) may call it from a browser.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.worker.close(grace_s=0)

    title = f"Fretsaw: {service.model.name}"
    app = FastAPI(title=title, lifespan=lifespan, docs_url=None, redoc_url=None, version="1")
    app.add_exception_handler(ApiError, _tell)
    app.add_exception_handler(HTTPException, _tell_of_path)
    app.add_exception_handler(RecursionError, _tell_of_depth)
    app.add_exception_handler(ClientDisconnect, _tell_nobody)
    app.add_exception_handler(Exception, _tell_of_fault)
    if api_keys:
        app.add_middleware(KeyCheck, keys=api_keys)
    add_routes(app, service)
    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.add_middleware(RequestCount, metrics=service.metrics, paths=paths)
    app.add_middleware(Spellings)
    if not allow_origins:
        return app
    # Around all else: a browser's first question carries no key, and faults are told too.
    return CORSMiddleware(
        app,
        allow_origins=allow_origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=("Retry-After",),
    )


# --- errors in one shape --------------------------------------------------------------------------


async def _tell(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JsonResponse(error.body, error.status, error.headers)


async def _tell_of_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return await _tell(request, not_here(path))
    message = f"{path}: {request.method} is not answered here"
    code = "method_not_allowed" if error.status_code == 405 else None
    headers = dict(error.headers or {})
    return await _tell(request, ApiError(error.status_code, message, code=code, headers=headers))


async def _tell_of_depth(request: Request, error: Exception) -> Response:
    message = "the body is nested too deeply; flatten it"
    return await _tell(request, bad_request(message, None, "invalid_json"))


async def _tell_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _tell_of_fault(request: Request, error: Exception) -> Response:
    """Answer what we did not foresee; the traceback goes to the log by the server's own hand."""
    if isinstance(error, EngineFailed | Closing):
        return await _tell(request, told(error))
    message = "the server failed on this request; its log says how"
    return await _tell(request, ApiError(500, message, code="internal_error"))


# --- before the paths -----------------------------------------------------------------------------


class Spellings:
    """Reads what clients write differently as one: slashes at a path's end, and HEAD as GET."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as it is meant; the answer to HEAD has no body."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_head = scope["method"] == "HEAD"
        meant = {
            **scope,
            "path": scope["path"].rstrip("/") or "/",
            "method": "GET" if is_head else scope["method"],
        }

        async def without_body(message: Message) -> None:
            is_body = message["type"] == "http.response.body"
            await send({**message, "body": b""} if is_body else message)

        await self._app(meant, receive, without_body if is_head else send)


class KeyCheck:
    """Lets through only requests that carry a key, except to the open paths."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            headers = dict(scope["headers"])
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = _digest(key.strip())
            # Every key is compared, in constant time, so that time tells nothing of any.
            known = [hmac.compare_digest(given, digest) for digest in self._digests]
            if scheme.lower() != b"bearer" or not any(known):
                message = "wrong or missing API key; send it as `Authorization: Bearer KEY`"
                headers = {"WWW-Authenticate": "Bearer"}
                error = ApiError(401, message, code="invalid_api_key", headers=headers)
                await JsonResponse(error.body, 401, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class RequestCount:
    """Counts responses by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]):
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note how it was answered."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests[path, message["status"]] += 1
            await send(message)

        return await self._app(scope, receive, counted)
