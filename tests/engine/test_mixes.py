"""Property: whatever is mixed, preempted or reused, every request is decoded as if it were alone.

Matrix products over other numbers of rows round otherwise, so a token may differ where the two best
lie within 1e-4, or a draw within as much of a boundary; such cases are counted, not hidden.
"""

import random

import pytest
from engines import MIXES, make_decoder, naive

from fretsaw.engine.engine import Engine
from fretsaw.engine.sequence import Event, Request

SETTINGS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1, "repetition_penalty": 1.3},
    {"presence_penalty": 0.5, "frequency_penalty": 0.3},
]


def random_requests(chooser: random.Random, count: int) -> list[Request]:
    beginnings = [tuple(chooser.randrange(50) for _ in range(40)) for _ in range(3)]
    requests = []
    for i in range(count):
        prompt = chooser.choice(beginnings)[: chooser.randrange(1, 41)]
        prompt += tuple(chooser.randrange(50) for _ in range(chooser.randrange(0, 6)))
        requests.append(
            Request(
                prompt,
                chooser.randrange(1, 30),
                seed=i,
                stop_token_ids=(chooser.randrange(50),),
                **chooser.choice(SETTINGS),
            )
        )
    return requests


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("seed", range(6))
def test_every_request_is_decoded_as_if_alone(name: str, seed: int) -> None:
    decoder, chooser = make_decoder(name), random.Random(seed)
    requests = random_requests(chooser, 24)
    page_bytes = 2 * 4 * 8 * 8 * sum(b.num_key_value_heads for b in decoder.config.blocks)
    engine = Engine(
        decoder,
        max_batch=chooser.choice([1, 3, 8]),
        chunk_tokens=chooser.choice([5, 16, 512]),
        page_size=8,
        # Room for about two whole sequences, so that most runs preempt.
        memory_mib=max(1, page_bytes) * 20 / 2**20,
    )
    waiting, made = list(enumerate(requests)), {i: [] for i in range(len(requests))}
    index_of: dict[int, int] = {}
    while waiting or engine.has_work:
        for _ in range(chooser.randrange(3)):  # requests arrive while others run
            if waiting:
                i, request = waiting.pop(0)
                index_of[engine.add(request)] = i
        for event in engine.step():
            made[index_of[event.request]].append(event)
    num_ties = sum(
        not same_text(made[i], naive(decoder, request)) for i, request in enumerate(requests)
    )
    assert num_ties == 0
    stats = engine.stats()
    assert (stats.pages_used, stats.num_running, stats.num_waiting) == (0, 0, 0)


def same_text(events: list[Event], expected: list[tuple[int, float, float]]) -> bool:
    """Whether tokens and log-probabilities agree; False where they part at a tie."""
    for event, (token, logprob, gap) in zip(events, expected, strict=False):
        if event.token_id != token:
            assert gap < 1e-4, f"{event.token_id} for {token}, though {gap} lies between"
            return False
        assert abs(event.logprob - logprob) < 1e-5
    assert len(events) == len(expected)
    assert events[-1].finish_reason is not None
    return True


def test_memory_runs_out_and_prefixes_are_found() -> None:
    decoder, chooser = make_decoder("mixed"), random.Random(0)
    engine = Engine(decoder, max_batch=8, page_size=8, memory_mib=20 * 7 * 2 * 4 * 64 / 2**20)
    requests = random_requests(chooser, 40)
    for _ in engine.generate(requests):
        pass
    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.prefix_hit_tokens > 100
    assert stats.pages_total == 20
