"""Refusals and faults as clients of OpenAI's API expect them."""

from collections.abc import Mapping
from typing import Any


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
