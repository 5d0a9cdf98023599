"""/v1/completions: texts or token ids in; their continuations, and log-probabilities, out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.engine.sequence import Event, Request
from fretsaw.serve.answer import Answer, Pieces, Reading
from fretsaw.serve.choices import respond
from fretsaw.serve.errors import bad_request
from fretsaw.serve.logprobs import CompletionLogprobs
from fretsaw.serve.model import ServedModel
from fretsaw.serve.protocol import CompletionRequest
from fretsaw.serve.service import (
    Service,
    check_counts,
    check_hope,
    check_id,
    check_model,
    engine_requests,
    in_thread_if_long,
    room_after,
    stop_strings,
)


async def complete_text(service: Service, body: CompletionRequest, http: HttpRequest) -> Response:
    """Continue one or several prompts, at once or as a stream."""
    check_model(service, body.model)
    check_counts(service, body.n, len(body.prompt))
    model = service.model
    size = sum(len(prompt) for prompt in body.prompt)
    prompts = await in_thread_if_long(
        size, lambda: [encoded(model, body, prompt) for prompt in body.prompt]
    )
    rooms = [
        room_after(service, ids, body.max_tokens, prompt_param="prompt", param="max_tokens")
        for ids in prompts
    ]
    requests = engine_requests(
        service,
        body,
        prompts,
        rooms,
        num_top_logprobs=body.logprobs or 0,
        prompt_logprobs=body.echo and body.logprobs is not None,
    )
    reading = Reading(stop_strings(service, body), skip_special=body.skip_special_tokens)
    choices = [
        begun(model.tokenizer, body, reading, index, request)
        for index, request in enumerate(requests)
    ]
    return await respond(
        service,
        http,
        body,
        requests,
        choices,
        prefix="cmpl",
        kind="text_completion",
        num_prompt=sum(map(len, prompts)),
    )


def begun(
    tokenizer: Tokenizer, body: CompletionRequest, reading: Reading, index: int, request: Request
) -> "TextChoice":
    """Return a continuation before its first token."""
    prompt, ids = body.prompt[index // body.n], request.token_ids
    skip_special = reading.skip_special
    echoed, places = "", None
    if body.echo and isinstance(prompt, str):
        echoed = prompt
        if body.logprobs is not None:
            places = tokenizer.places(prompt, parse_special=body.parse_special)
            places = [0] * (len(ids) - len(places)) + places  # what begins it is not in the text
    elif body.echo:
        echoed = tokenizer.decode(ids, skip_special)
    answer = Answer(tokenizer, reading, after=ids)
    logprobs = None
    if body.logprobs is not None:
        logprobs = CompletionLogprobs(
            tokenizer, after=ids, echoed=echoed, places=places, skip_special=skip_special
        )
    return TextChoice(index, answer, ids, echoed, logprobs, tells_ids=body.return_token_ids)


def encoded(
    model: ServedModel, body: Any, prompt: str | Sequence[int], *, is_limited: bool = True
) -> tuple[int, ...]:
    """Return a prompt's ids: a text's with what begins texts, given ids as they are.

    The names of special tokens in a text stand for these tokens, as a prompt is all that the model
    reads; `parse_special: false` keeps them text.
    """
    tokenizer = model.tokenizer
    if not isinstance(prompt, str):
        for id in prompt[: model.context]:  # more are refused for their number
            check_id(model, id, "prompt")
        return tuple(prompt)
    if is_limited:
        check_hope(model, prompt, "prompt")
    ids = tokenizer.encode_raw(prompt) if body.parse_special else tokenizer.encode(prompt)
    begin = list(tokenizer.begin_ids)
    if body.add_special_tokens and ids[: len(begin)] != begin:
        ids = begin + ids
    if not ids:
        raise bad_request("prompt: empty; give at least one token", "prompt", "invalid_value")
    return tuple(ids)


@dataclass
class TextChoice:
    """One continuation: its text, after the prompt's where that is echoed."""

    index: int
    answer: Answer
    prompt_ids: tuple[int, ...]
    echoed: str
    logprobs: CompletionLogprobs | None
    tells_ids: bool
    parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts += [self.echoed] if self.echoed else []

    def take(self, pieces: Pieces, events: Sequence[Event]) -> None:
        """Take what the answer gained."""
        self.parts += [text for _, text in pieces]
        self.token_ids += [event.token_id for event in events if event.token_id is not None]
        for event in events if self.logprobs is not None else ():
            assert self.logprobs is not None
            if event.prompt_logprobs is not None:
                self.logprobs.take_prompt(self.prompt_ids, event.prompt_logprobs)
            self.logprobs.take(event)

    def whole(self) -> dict[str, Any]:
        """Return the text and why it ended."""
        return self._choice()

    def opening(self) -> list[dict[str, Any]]:
        """Return nothing: a text begins with its first piece."""
        return []

    def chunks(self, pieces: Pieces) -> list[dict[str, Any]]:
        """Return what is new, where that is text or the end."""
        return [self._choice()] if self.parts or self.answer.finish_reason is not None else []

    def _choice(self) -> dict[str, Any]:
        """Return what was taken since the last time."""
        text, self.parts = "".join(self.parts), []
        ids, self.token_ids = self.token_ids, []
        choice: dict[str, Any] = {
            "index": self.index,
            "text": text,
            "logprobs": None if self.logprobs is None else self.logprobs.drain(),
            "finish_reason": self.answer.finish_reason,
        }
        if self.tells_ids:
            choice |= {"token_ids": ids, "prompt_token_ids": list(self.prompt_ids)}
        return choice
