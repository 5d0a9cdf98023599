"""The server's paths: what each takes, and what it returns."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.responses import Response

from fretsaw.serve.body import read_body
from fretsaw.serve.chat_completions import complete_chat, rendered
from fretsaw.serve.completions import complete_text, encoded
from fretsaw.serve.engine_thread import Closing, EngineRestarting
from fretsaw.serve.errors import ApiError, bad_request, told
from fretsaw.serve.page.page import ChatPage
from fretsaw.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from fretsaw.serve.response import JsonResponse
from fretsaw.serve.service import Service, check_id, check_model, in_thread_if_long


def add_routes(app: FastAPI, service: Service) -> None:
    """Let an application answer on all of the server's paths."""
    _add_completions(app, service)
    _add_tokens(app, service)
    _add_model(app, service)
    _add_health(app, service)
    _add_page(app)


def _add_completions(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post("/v1/chat/completions", openapi_extra=_takes(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await complete_chat(service, await read_body(request, ChatRequest, limits), request)

    @app.post("/v1/completions", openapi_extra=_takes(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Continue prompts."""
        return await complete_text(
            service, await read_body(request, CompletionRequest, limits), request
        )


def _add_tokens(app: FastAPI, service: Service) -> None:
    model, limits = service.model, service.limits

    @app.post("/tokenize", openapi_extra=_takes(TokenizeRequest))
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

    @app.post("/detokenize", openapi_extra=_takes(DetokenizeRequest))
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


def _add_model(app: FastAPI, service: Service) -> None:
    model, worker = service.model, service.worker

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


def _add_health(app: FastAPI, service: Service) -> None:
    worker = service.worker

    @app.get("/health")
    async def health() -> Response:
        """Say whether answers can be had."""
        if worker.failure is not None:
            raise ApiError(503, "the engine failed; start the server again", code="engine_failed")
        if worker.is_closing:
            raise told(Closing())
        if worker.is_restarting:
            raise told(EngineRestarting())
        return JsonResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return counts and times for Prometheus."""
        text = service.metrics.render(
            worker.stats,
            worker.num_open,
            service.processes,
            num_failed=worker.num_failed,
            num_restarts=worker.num_restarts,
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    chat = ChatPage.assembled()

    @app.get("/")
    async def page() -> Response:
        """Return the chat page."""
        return HTMLResponse(chat.html, headers=chat.headers)


def _takes(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


def _token_ids(service: Service, body: TokenizeRequest) -> Sequence[int]:
    """Return the ids that /tokenize was asked for."""
    if (body.prompt is None) == (not body.messages):
        raise bad_request("prompt: send either prompt or messages", "prompt", "invalid_value")
    if body.prompt is not None:
        if not body.prompt:
            return service.model.tokenizer.begin_ids if body.add_special_tokens else ()
        return encoded(service.model, body, body.prompt, is_limited=False)
    return rendered(service, body, begins=body.add_generation_prompt)
