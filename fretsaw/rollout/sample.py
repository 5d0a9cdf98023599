"""Prompts -> groups of sampled answers, by any sampler."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Request, RequestFailed
from fretsaw.rollout.sampler import Sampler
from fretsaw.stage.progress import say


@dataclass(frozen=True)
class Sample:
    """One sampled answer, with what it was sampled from. Token ids are the record, not the text."""

    group: int  # index of the prompt
    index: int  # within the group
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # its end-of-turn token included
    logprobs: tuple[float, ...]  # of every token, raw, at temperature 1
    num_tokens: int  # of the answer, also where a server tells no ids
    is_finished: bool  # ended by itself, not cut at max_tokens
    temperature: float
    top_p: float
    seed: int
    weight_version: int
    error: str | None = None  # why it failed, where it did; it then counts as none


def sample_groups(
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    group_size: int,
    first_group: int = 0,
    stop_token_ids: Sequence[int],
    on_token: Callable[[int, int], None] = lambda num_ended, num_tokens: None,
) -> list[Sample]:
    """Return `group_size` answers to every prompt, group by group.

    An answer's seed is a function of (the sampling's seed, group, index in the group) alone; groups
    are counted from `first_group`. `on_token` is told of the answers that have ended and the tokens
    made so far. Raises `RequestFailed` where every answer failed; where some did, a line says so.
    """
    stop = tuple(stop_token_ids)
    own = [
        replace(sampling, seed=sample_seed(sampling.seed, first_group + group, index))
        for group in range(len(prompts))
        for index in range(group_size)
    ]
    requests = [Request(tuple(prompts[i // group_size]), one, stop) for i, one in enumerate(own)]
    token_ids: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    reasons: list[str | None] = [None] * len(requests)
    failed: dict[int, str] = {}
    num_ended = num_tokens = 0
    for event in sampler.generate(requests):
        if event.error is not None:
            failed[event.request] = event.error
        else:
            assert event.token_id is not None, "answers of no tokens are not asked for"
            token_ids[event.request].append(event.token_id)
            logprobs[event.request].append(event.logprob)
            num_tokens += 1
        if event.finish_reason is not None:
            reasons[event.request] = event.finish_reason
            num_ended += 1
        on_token(num_ended, num_tokens)
    if failed:
        first = min(failed)
        prompt = f"prompt {first_group + first // group_size}: {failed[first]}"
        told = f"sampling: {len(failed)} of {len(requests)} answers failed, the first of {prompt}"
        if len(failed) == len(requests):
            raise RequestFailed(told)
        say(f"{told}; they count as none")
    version = sampler.stats().weight_version
    return [
        Sample(
            first_group + i // group_size,
            i % group_size,
            request.token_ids,
            tuple(token_ids[i]),
            tuple(logprobs[i]),
            len(token_ids[i]),
            reasons[i] == "stop",
            sampling.temperature,
            sampling.top_p,
            request.sampling.seed,
            version,
            failed.get(i),
        )
        for i, request in enumerate(requests)
    ]


def sample_seed(seed: int, group: int, index: int) -> int:
    """Return 63 bits that depend on the run's seed, the group and the sample's index in it."""
    digest = hashlib.blake2b(f"{seed} {group} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
