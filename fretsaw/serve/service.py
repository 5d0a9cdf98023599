"""What every route works with, and how a request's fields become the engine's."""

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fretsaw.engine.sequence import Request
from fretsaw.serve.engine_thread import EngineThread
from fretsaw.serve.errors import ApiError, bad_request
from fretsaw.serve.metrics import Metrics
from fretsaw.serve.model import DEFAULTED, ServedModel
from fretsaw.serve.protocol import MAX_STOP_STRINGS, GenerationRequest
from fretsaw.serve.settings import Limits

LONG = 16_384  # characters of a text that takes milliseconds to encode
Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    """A model, the thread that runs it, and what clients may ask of it."""

    model: ServedModel
    worker: EngineThread
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    processes: Mapping[str, int] = field(default_factory=lambda: {"server": os.getpid()})


def check_model(service: Service, name: str | None) -> None:
    """Raise 404 where a request names another model; none named is the one there is."""
    if name is not None and name != service.model.name:
        raise ApiError(
            404,
            f"model {name!a}: not served here; {service.model.name!r} is",
            param="model",
            code="model_not_found",
        )


def check_counts(service: Service, n: int, num_prompts: int) -> None:
    """Raise where a request asks for more answers than it may."""
    limits = service.limits
    if n > limits.max_n:
        raise bad_request(f"n: {n}; give at most {limits.max_n}", "n", "invalid_value")
    if n * num_prompts > limits.max_choices:
        raise bad_request(
            f"{num_prompts} prompts times {n} answers; give at most {limits.max_choices} "
            "in one request",
            "n" if n > 1 else "prompt",
            "invalid_value",
        )


def engine_requests(
    service: Service,
    body: GenerationRequest,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: Sequence[int],
    **more: Any,
) -> list[Request]:
    """Return the engine's requests, the `n` answers to a prompt side by side.

    The first answer to a prompt has the request's own seed, the others seeds that follow from it;
    without one every answer has a seed of its own.
    """
    model = service.model
    named = {name: getattr(body, name) for name in DEFAULTED if getattr(body, name) is not None}
    sampling = replace(
        model.defaults,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        **named | ({"top_k": max(named["top_k"], 0)} if "top_k" in named else {}),
    )
    try:
        sampling.check()
    except ValueError as error:
        raise bad_request(str(error), str(error).partition(" ")[0], "invalid_value") from error
    ends = () if body.ignore_eos else model.ends
    for id in body.stop_token_ids:
        check_id(model, id, "stop_token_ids")
    seed = secrets.randbits(62) if body.seed is None else body.seed
    return [
        Request(
            prompt,
            replace(
                sampling,
                max_tokens=room,
                seed=(seed if index == 0 else _seed(seed, index)) % 2**63,
            ),
            tuple(dict.fromkeys((*ends, *body.stop_token_ids))),
            **more,
        )
        for prompt, room in zip(prompts, max_tokens, strict=True)
        for index in range(body.n)
    ]


def _seed(seed: int, index: int) -> int:
    """Return 63 bits that follow from a request's seed and the index among its answers."""
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def stop_strings(service: Service, body: GenerationRequest) -> tuple[str, ...]:
    """Return the stop strings that must be looked for, at most `MAX_STOP_STRINGS`."""
    strings = service.model.stop_strings(body.stop)
    if len(strings) > MAX_STOP_STRINGS:
        raise bad_request(
            f"stop: {len(strings)} strings; give at most {MAX_STOP_STRINGS}",
            "stop",
            "invalid_value",
        )
    return strings


def room_after(
    service: Service, prompt: Sequence[int], asked: int | None, *, prompt_param: str, param: str
) -> int:
    """Return how many tokens may follow a prompt; None asked is all there is room for."""
    context, most = service.model.context, service.limits.max_tokens
    room = context - len(prompt)
    if room < 1 and asked != 0:
        raise bad_request(
            f"{prompt_param}: {len(prompt)} tokens, but the context is {context} and an "
            "answer needs room in it; send less",
            prompt_param,
            "context_length_exceeded",
        )
    if asked is None:
        return min(room, most or room)
    if most is not None and asked > most:
        raise bad_request(f"{param}: {asked}; give at most {most}", param, "invalid_value")
    if asked > room:
        raise bad_request(
            f"{param}: {asked} after a prompt of {len(prompt)} tokens, but the context is "
            f"{context}; give at most {room}",
            param,
            "context_length_exceeded",
        )
    return asked


def check_hope(model: ServedModel, text: str, param: str) -> None:
    """Raise where a text's beginning alone is twice the context; the rest is then not even read.

    What a few megabytes of text take while they are encoded is a hundred times their size.
    """
    length = 16 * model.context + LONG
    if len(text) > length and len(model.tokenizer.encode(text[:length])) > 2 * model.context:
        raise bad_request(
            f"{param}: {len(text)} characters, far more than the context of {model.context} tokens "
            "holds; send less",
            param,
            "context_length_exceeded",
        )


def check_id(model: ServedModel, id: int, param: str) -> None:
    """Raise where a token id is not in the vocabulary."""
    if not 0 <= id < model.config.vocab_size:
        raise bad_request(
            f"{param}: no token {id}; ids are from 0 to {model.config.vocab_size - 1}",
            param,
            "invalid_value",
        )


async def in_thread_if_long(size: int, work: Callable[[], Result]) -> Result:
    """Return what the work returns; for so many characters, in a thread, so that others go on."""
    return await asyncio.to_thread(work) if size > LONG else work()
