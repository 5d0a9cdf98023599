"""A sampler at a URL: any OpenAI-compatible server that returns token ids, such as vLLM or ours.

Requests go out side by side as token ids and come back as the same events that the embedded engine
gives, so whoever samples need not know where. The server must report raw log-probabilities at
temperature 1, which is vLLM's default (`--logprobs-mode raw_logprobs`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from fretsaw.client.openai import Client
from fretsaw.engine.sequence import Event, Request
from fretsaw.engine.stats import Stats


class RemoteSampler:
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
        stop_ids: tuple[int, ...] = (),
    ):
        """Ask for the server's model unless one is named; raise ValueError where none answers.

        `stop_ids` are what ends an answer of the checkpoint that is served there.
        """
        self._client = Client(
            url,
            api_key=api_key or "",
            deadline_s=timeout_s,
            max_concurrent=max_concurrent,
            may_repeat=True,
        )
        self._stats = Stats(weight_version=weight_version)
        self.model = model or self._client.first_model()
        self.stop_ids = stop_ids

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together, as the server states them."""
        match self._client.call("/v1/models"):
            case {"data": [*entries]}:
                for entry in entries:
                    if entry.get("id") == self.model and entry.get("max_model_len"):
                        return int(entry["max_model_len"])
        raise ValueError(
            f"{self._client.url}: does not say how long the context of {self.model} is; use a "
            "server that states max_model_len at /v1/models, as vLLM does"
        )

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Count what follows as of another version, which the server has been given already.

        Raises ValueError for tensors: OpenAI's routes take none.
        """
        for name, _ in named_tensors:
            raise ValueError(
                f"{self._client.url}: weights ({name}, ...) can't be sent over OpenAI's routes; "
                "restart the server on the new checkpoint, or sample with the embedded engine"
            )
        self._stats.weight_version = version

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Yield the tokens of every request, all of one at once, as requests end."""
        for number, request in enumerate(requests):
            if request.prompt_logprobs or request.num_top_logprobs:
                raise ValueError(
                    f"request {number}: asks for a prompt's log-probabilities or for rivals, which "
                    "are not read from a server; use the embedded engine"
                )
            if not request.token_ids or request.sampling.max_tokens < 1:
                raise ValueError(
                    f"request {number}: {len(request.token_ids)} prompt tokens and max_tokens "
                    f"{request.sampling.max_tokens}; a server needs at least one of each"
                )
        bodies = map(self._body, requests)
        for number, answer in self._client.call_all("/v1/completions", bodies):
            yield from self._events(number, answer)

    def stats(self) -> Stats:
        """Return counts so far; seconds are the server's and stay 0."""
        return self._stats

    def _body(self, request: Request) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": request.token_ids,
            **asdict(replace(request.sampling, seed=request.sampling.seed % 2**63, stop=())),
            "stop_token_ids": list(request.stop_token_ids),
            "ignore_eos": True,  # what ends an answer is named, not the server's to choose
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _events(self, number: int, answer: Any) -> Iterator[Event]:
        match answer:
            case {"choices": [{} as choice, *_]}:
                pass
            case _:
                choice = {}
        token_ids = choice.get("token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if not token_ids or logprobs is None or len(token_ids) != len(logprobs):
            raise ValueError(
                f"{self._client.url}: the server returned no token ids with their "
                "log-probabilities; use one that knows `return_token_ids`, as vLLM from 0.10.2 on "
                "does"
            )
        self._stats.decode_tokens += len(token_ids)
        last = len(token_ids) - 1
        for at, (token_id, logprob) in enumerate(zip(token_ids, logprobs, strict=True)):
            reason = choice["finish_reason"] if at == last else None
            yield Event(number, token_id, logprob, reason)
