"""The server's paths, and what stands before them: keys, counting, and errors in one shape."""

import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fretsaw.serve.body import read_body
from fretsaw.serve.chat_completions import complete_chat, rendered
from fretsaw.serve.completions import complete, encoded
from fretsaw.serve.errors import ApiError, bad_request, not_here
from fretsaw.serve.metrics import Metrics
from fretsaw.serve.page import Page
from fretsaw.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from fretsaw.serve.service import (
    JsonResponse,
    Service,
    check_id,
    check_model,
    in_thread_if_long,
    told,
)
from fretsaw.serve.worker import Closing, EngineFailed

OPEN_PATHS = ("/health", "/")  # the page itself asks for the key it then sends


def create_app(service: Service, *, api_keys: Sequence[str] = ()) -> FastAPI:
    """Return the application; the service's worker runs as long as it."""

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
    paths = _add_routes(app, service)
    app.add_middleware(RequestCount, metrics=service.metrics, paths=paths)
    return app


def _add_routes(app: FastAPI, service: Service) -> frozenset[str]:
    model, worker, limits = service.model, service.worker, service.limits
    chat = Page.read()

    def takes(kind: type[BaseModel]) -> dict[str, Any]:
        schema = kind.model_json_schema()
        return {"requestBody": {"content": {"application/json": {"schema": schema}}}}

    @app.post("/v1/chat/completions", openapi_extra=takes(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await complete_chat(service, await read_body(request, ChatRequest, limits), request)

    @app.post("/v1/completions", openapi_extra=takes(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Continue prompts."""
        return await complete(service, await read_body(request, CompletionRequest, limits), request)

    @app.post("/tokenize", openapi_extra=takes(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        """Return the ids of a prompt, or of a conversation as it is rendered."""
        body = await read_body(request, TokenizeRequest, limits)
        check_model(service, body.model)
        size = len(body.prompt or "") + sum(len(turn.content) for turn in body.messages)
        ids = await in_thread_if_long(size, lambda: _token_ids(service, body))
        strings = [model.tokenizer.token(id) for id in ids] if body.return_token_strs else None
        return JsonResponse(
            {
                "count": len(ids),
                "max_model_len": model.context,
                "tokens": list(ids),
                "token_strs": strings,
            }
        )

    @app.post("/detokenize", openapi_extra=takes(DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        """Return the text of ids, special tokens included."""
        body = await read_body(request, DetokenizeRequest, limits)
        check_model(service, body.model)
        for id in body.tokens:
            check_id(model, id, "tokens")
        return JsonResponse({"prompt": model.tokenizer.decode(body.tokens, skip_special=False)})

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        """Return the special tokens and the chat template."""
        return JsonResponse(model.tokenizer_info())

    @app.get("/v1/models")
    async def models() -> Response:
        """List the one model."""
        card = model.card(worker.stats.weight_version)
        return JsonResponse({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        """Return the model by its name."""
        check_model(service, name)
        return JsonResponse(model.card(worker.stats.weight_version))

    @app.get("/architecture")
    async def architecture() -> Response:
        """Return the layers, for the page's picture."""
        return JsonResponse(model.architecture())

    @app.get("/health")
    async def health() -> Response:
        """Say whether answers can be had."""
        if worker.failure is not None:
            raise ApiError(503, "the engine failed; start the server again", code="engine_failed")
        if worker.is_closing:
            raise told(Closing())
        return JsonResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return counts and times for Prometheus."""
        text = service.metrics.render(worker.stats, worker.num_open, service.processes)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/")
    async def page() -> Response:
        """Return the chat page."""
        return HTMLResponse(chat.html, headers=chat.headers)

    return frozenset(route.path for route in app.routes if isinstance(route, Route))


def _token_ids(service: Service, body: TokenizeRequest) -> Sequence[int]:
    """Return the ids that /tokenize was asked for."""
    if (body.prompt is None) == (not body.messages):
        raise bad_request("prompt: send either prompt or messages", "prompt", "invalid_value")
    if body.prompt is not None:
        if not body.prompt:
            return _bos(service, body)
        return encoded(service.model, body, body.prompt, is_limited=False)
    return rendered(service, body, begins=body.add_generation_prompt)


def _bos(service: Service, body: TokenizeRequest) -> list[int]:
    bos = service.model.tokenizer.bos_token_id
    return [bos] if body.add_special_tokens and bos is not None else []


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
