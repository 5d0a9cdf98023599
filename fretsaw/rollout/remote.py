"""An engine at a URL: any OpenAI-compatible server that returns token ids, such as vLLM or ours.

Requests go out side by side as token ids and come back as the same events that the embedded engine
gives, so whoever samples need not know where. The server must report raw log-probabilities at
temperature 1, which is vLLM's default (`--logprobs-mode raw_logprobs`).
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from fretsaw.engine.sequence import Event, Request
from fretsaw.engine.stats import Stats

BUSY = (429, 502, 503, 504)  # worth another try


class RemoteEngine:
    """Generates at a server; `url` is its root, with or without /v1."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        max_concurrent: int = 64,
        timeout_s: float = 600.0,
        weight_version: int = 0,
    ):
        """Ask for the server's model unless one is named; raise ValueError where none answers."""
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._max_concurrent, self._timeout_s = max_concurrent, timeout_s
        self._stats = Stats(weight_version=weight_version)
        self.model = model or self._call("/v1/models", None)["data"][0]["id"]

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Yield the tokens of every request, all of one at once, as requests end."""
        for number, request in enumerate(requests):
            if request.prompt_logprobs or request.num_top_logprobs:
                raise ValueError(
                    f"request {number}: asks for a prompt's log-probabilities or for rivals, which "
                    "are not read from a server; use the embedded engine"
                )
            if not request.token_ids or request.max_tokens < 1:
                raise ValueError(
                    f"request {number}: {len(request.token_ids)} prompt tokens and max_tokens "
                    f"{request.max_tokens}; a server needs at least one of each"
                )
        with ThreadPoolExecutor(self._max_concurrent) as pool:
            number_of = {pool.submit(self._complete, r): i for i, r in enumerate(requests)}
            try:
                for done in as_completed(number_of):
                    yield from self._events(number_of[done], done.result())
            finally:
                for future in number_of:
                    future.cancel()

    def stats(self) -> Stats:
        """Return counts so far; seconds are the server's and stay 0."""
        return self._stats

    def _complete(self, request: Request) -> dict[str, Any]:
        body = {
            "model": self.model,
            "prompt": list(request.token_ids),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed % 2**63,
            "stop_token_ids": list(request.stop_token_ids),
            "ignore_eos": True,  # what ends an answer is named, not the server's to choose
            "top_p": request.top_p,
            "top_k": request.top_k,
            "min_p": request.min_p,
            "repetition_penalty": request.repetition_penalty,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "logprobs": 0,
            "return_token_ids": True,
        }
        return self._call("/v1/completions", body)["choices"][0]

    def _events(self, number: int, choice: dict[str, Any]) -> Iterator[Event]:
        token_ids = choice.get("token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if not token_ids or logprobs is None or len(token_ids) != len(logprobs):
            raise ValueError(
                f"{self._url}: the server returned no token ids with their log-probabilities; use "
                "one that knows `return_token_ids`, as vLLM from 0.10.2 on does"
            )
        self._stats.decode_tokens += len(token_ids)
        last = len(token_ids) - 1
        for at, (token_id, logprob) in enumerate(zip(token_ids, logprobs, strict=True)):
            reason = choice["finish_reason"] if at == last else None
            yield Event(number, token_id, logprob, reason)

    def _call(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Call the server, again while it is busy, until the deadline."""
        deadline, wait_s = time.monotonic() + self._timeout_s, 0.5
        data = None if body is None else json.dumps(body).encode()
        while True:
            call = urllib.request.Request(self._url + path, data, self._headers)
            left_s = max(1.0, deadline - time.monotonic())
            try:
                with urllib.request.urlopen(call, timeout=left_s) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if error.code not in BUSY or time.monotonic() + wait_s > deadline:
                    raise ValueError(
                        f"{self._url}{path}: the server refused ({error.code}): {_told(error)}"
                    ) from error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if body is None or time.monotonic() + wait_s > deadline:
                    raise ValueError(
                        f"{self._url}{path}: no answer ({error}); check the address and that the "
                        "server runs"
                    ) from error
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 10.0)


def _told(error: urllib.error.HTTPError) -> str:
    """Return what the server says of its refusal."""
    text = error.read().decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]
