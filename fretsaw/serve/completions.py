"""/v1/completions: texts or token ids in; their continuations, and log-probabilities, out."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from fretsaw.engine.sequence import Event
from fretsaw.serve.answer import Answer, Pieces, Reading
from fretsaw.serve.errors import bad_request
from fretsaw.serve.logprobs import CompletionLogprobs
from fretsaw.serve.metrics import Stopwatch
from fretsaw.serve.model import ServedModel
from fretsaw.serve.protocol import CompletionRequest
from fretsaw.serve.service import (
    DONE,
    EventStream,
    Head,
    Service,
    check_counts,
    check_hope,
    check_id,
    check_model,
    engine_requests,
    growth,
    in_thread_if_long,
    merged,
    room_after,
    sse,
    stop_strings,
    submit,
    usage,
    whole,
)
from fretsaw.serve.worker import Job


async def complete(service: Service, body: CompletionRequest, http: HttpRequest) -> Response:
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
    texts = []
    for number, request in enumerate(requests):
        prompt, ids = body.prompt[number // body.n], request.token_ids
        echoed = ""
        if body.echo:
            is_text = isinstance(prompt, str)
            echoed = prompt if is_text else model.tokenizer.decode(ids, body.skip_special_tokens)
        answer = Answer(model.tokenizer, reading, after=ids)
        logprobs = None
        if body.logprobs is not None:
            logprobs = CompletionLogprobs(model.tokenizer, skip_special=body.skip_special_tokens)
        texts.append(_Text(answer, ids, echoed, logprobs, tells_ids=body.return_token_ids))
    watch = Stopwatch(service.metrics, len(texts))
    job = await submit(service, requests)
    num_prompt = sum(map(len, prompts))
    service.metrics.prompt_tokens += num_prompt
    head = Head.of(service, "cmpl")
    if body.stream:
        return EventStream(service, job, _stream(head, job, texts, body, num_prompt, watch))
    return await whole(service, http, job, _gather(head, job, texts, num_prompt, watch))


def encoded(
    model: ServedModel, body: Any, prompt: str | Sequence[int], *, is_limited: bool = True
) -> tuple[int, ...]:
    """Return a prompt's ids: a text's with bos before it, given ids as they are.

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
    bos = tokenizer.bos_token_id
    if body.add_special_tokens and bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    if not ids:
        raise bad_request("prompt: empty; give at least one token", "prompt", "invalid_value")
    return tuple(ids)


@dataclass
class _Text:
    """One continuation: its text, after the prompt's where that is echoed."""

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
        self.parts += [text for _, text in pieces]
        self.token_ids += [event.token_id for event in events if event.token_id is not None]
        for event in events if self.logprobs is not None else ():
            assert self.logprobs is not None
            if event.prompt_logprobs is not None:
                self.logprobs.take_prompt(self.prompt_ids, event.prompt_logprobs)
            self.logprobs.take(event)

    def drain(self, index: int, reason: str | None) -> dict[str, Any]:
        """Return the choice that what was taken since the last time makes."""
        text, self.parts = "".join(self.parts), []
        ids, self.token_ids = self.token_ids, []
        choice: dict[str, Any] = {"index": index, "text": text}
        choice["logprobs"] = None if self.logprobs is None else self.logprobs.drain()
        choice["finish_reason"] = reason
        if self.tells_ids:
            choice |= {"token_ids": ids, "prompt_token_ids": list(self.prompt_ids)}
        return choice


async def _gather(
    head: Head, job: Job, texts: Sequence[_Text], num_prompt: int, watch: Stopwatch
) -> dict[str, Any]:
    answers = [text.answer for text in texts]
    async for grown in growth(job, answers, watch):
        for index, gain in grown.items():
            texts[index].take(gain.pieces, gain.events)
    choices = [text.drain(i, text.answer.finish_reason) for i, text in enumerate(texts)]
    return merged(head("text_completion", choices), usage=usage(num_prompt, answers))


async def _stream(
    head: Head,
    job: Job,
    texts: Sequence[_Text],
    body: CompletionRequest,
    num_prompt: int,
    watch: Stopwatch,
) -> AsyncIterator[bytes]:
    answers = [text.answer for text in texts]
    async for grown in growth(job, answers, watch):
        chunks = []
        for index, gain in grown.items():
            text = texts[index]
            text.take(gain.pieces, gain.events)
            reason = text.answer.finish_reason
            if text.parts or reason is not None:
                chunks.append(sse(head("text_completion", [text.drain(index, reason)])))
        yield b"".join(chunks)
    if body.stream_options.include_usage:
        yield sse(merged(head("text_completion", []), usage=usage(num_prompt, answers)))
    yield DONE
