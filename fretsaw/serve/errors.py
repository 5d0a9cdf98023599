"""Refusals and faults as clients of OpenAI's API expect them."""

from collections.abc import Mapping
from typing import Any

from fretsaw.serve.engine_thread import (
    AnswerFailed,
    Closing,
    EngineFailed,
    EngineRestarting,
    QueueFull,
)

RETRY_AFTER = {"Retry-After": "1"}
RETRY_AFTER_RESTART = {"Retry-After": "5"}


class ApiError(Exception):
    """What the client is told in place of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, _SERVER if self.status >= 500 else _REQUEST),
                "param": self.param,
                "code": self.code,
            }
        }


_REQUEST, _SERVER = "invalid_request_error", "server_error"
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def bad_request(message: str, param: str | None, code: str | None = None) -> ApiError:
    """Return the refusal of a request whose field `param` is wrong."""
    return ApiError(400, message, param=param, code=code)


def told(error: Exception) -> ApiError:
    """Return what a client is told when its answer cannot be had."""
    match error:
        case QueueFull():
            message = "too many answers wait already; try again in a moment"
            return ApiError(429, message, code="queue_full", headers=RETRY_AFTER)
        case Closing():
            message = "the server is shutting down; try another, or again in a moment"
            return ApiError(503, message, code="shutting_down", headers=RETRY_AFTER)
        case EngineRestarting():
            message = "the engine was lost and is being started again; try again in a moment"
            return ApiError(503, message, code="engine_restarting", headers=RETRY_AFTER_RESTART)
        case AnswerFailed():
            message = f"this answer failed, others go on: {error}"
            return ApiError(500, message, code="answer_failed")
        case EngineFailed():
            message = "the engine failed and answers no more; the server must be started again"
            return ApiError(500, message, code="engine_failed")
    raise error


def not_here(path: str) -> ApiError:
    """Return the refusal of a path that this server does not answer, with what to use instead."""
    for beginning, remedy in _OUT_OF_SCOPE.items():
        if path.startswith(beginning):
            return ApiError(404, f"{path} is not served here; {remedy}", code="not_served")
    return ApiError(404, f"{path}: no such path; /openapi.json lists them", code="unknown_path")


_OUT_OF_SCOPE = {
    "/v1/responses": "use /v1/chat/completions",
    "/v1/messages": "use /v1/chat/completions",
    "/v1/conversations": "the server keeps none; send all turns to /v1/chat/completions",
    "/v1/chat/completions/": "answers are not stored",
    "/v1/embeddings": "this is a model that writes text",
    "/v1/rerank": "this is a model that writes text",
    "/v1/score": "send echo and logprobs to /v1/completions",
    "/v1/audio": "this is a model that writes text",
    "/v1/images": "this is a model that writes text",
    "/v1/moderations": "this is a model that writes text",
    "/v1/files": "nothing is stored",
    "/v1/batches": "send the requests themselves, up to the queue's length at a time",
    "/v1/fine_tuning": "tune with `fretsaw sft`",
    "/v1/assistants": "use /v1/chat/completions",
    "/v1/threads": "use /v1/chat/completions",
}
