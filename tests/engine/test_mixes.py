"""Property: whatever is mixed, preempted or reused, every request is decoded as if it were alone.

Matrix products over other numbers of rows round otherwise, so a token may differ where the two best
lie within 1e-4, or a draw within as much of a boundary; such cases are counted, not hidden.
"""

import random

import pytest
import torch
from engines import MIXES, ask, make_decoder, naive

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
        length, settings = chooser.randrange(1, 30), chooser.choice(SETTINGS)
        ends = (chooser.randrange(50),)
        requests.append(ask(prompt, length, seed=i, stop_token_ids=ends, **settings))
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


def tokens(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if event.token_id is not None]


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


def test_a_batch_invariant_engine_gives_the_same_bits_in_any_company() -> None:
    decoder, chooser = make_decoder("mixed"), random.Random(1)
    requests = random_requests(chooser, 12)
    made: dict[int, list[tuple[int | None, float]]] = {}

    def engine() -> Engine:
        return Engine(decoder, max_batch=8, chunk_tokens=16, batch_invariant=True)

    for event in engine().generate(requests):
        made.setdefault(event.request, []).append((event.token_id, event.logprob))
    for i, request in enumerate(requests):
        alone = [(event.token_id, event.logprob) for event in engine().generate([request])]
        assert alone == made[i]


@pytest.mark.parametrize("name", MIXES)
def test_padded_steps_are_the_same_steps(name: str) -> None:
    decoder, chooser = make_decoder(name), random.Random(2)
    requests = random_requests(chooser, 20)
    page_bytes = 2 * 4 * 8 * 8 * sum(b.num_key_value_heads for b in decoder.config.blocks)
    memory_mib = max(1, page_bytes) * 19 / 2**20  # no power of two, and often full
    padded = Engine(decoder, max_batch=6, page_size=8, cuda_graphs=True, memory_mib=memory_mib)
    made: dict[int, list[Event]] = {}
    for event in padded.generate(requests):
        made.setdefault(event.request, []).append(event)
    assert all(same_text(made[i], naive(decoder, r)) for i, r in enumerate(requests))


def test_forced_tokens_are_gone_on_from() -> None:
    decoder = make_decoder("mixed")
    engine = Engine(decoder)
    number = engine.add(ask((1, 2, 3), 12))
    events = [event for _ in range(4) for event in engine.step()]
    engine.force(number, (7, 8, 9))
    while engine.has_work:
        events += engine.step()
    ids = tokens(events)
    text = (1, 2, 3, *ids[:4], 7, 8, 9)
    assert len(ids) == 12 - 3
    assert [token for token, _, _ in naive(decoder, ask(text, 5))] == ids[4:]
    with pytest.raises(ValueError, match="3 tokens to force, but 3 are left"):
        engine.force(engine.add(ask((1,), 3)), (1, 2, 3))


def test_two_listeners_hear_all_of_their_own() -> None:
    engine = Engine(make_decoder("mixed"))
    requests = [ask((1, 2, 3), 9), ask((4, 5), 6)]
    alone = [tokens(list(engine.generate([request]))) for request in requests]
    first, second = (engine.generate([request]) for request in requests)
    begun = [next(first), next(second), next(first)]
    engine.logprobs((1, 2, 3))
    assert tokens([begun[0], begun[2], *first]) == alone[0]
    assert tokens([begun[1], *second]) == alone[1]
    assert not engine.has_work


def test_an_aborted_request_leaves_nothing_behind() -> None:
    engine = Engine(make_decoder("mixed"), max_batch=2)
    numbers = [engine.add(ask((1, 2, i), 30)) for i in range(5)]
    engine.step()
    for number in numbers:  # two of them run, three wait
        engine.abort(number)
        engine.abort(number)
    assert not engine.has_work
    assert engine.stats().pages_used == 0
    listener = engine.generate([ask((1, 2), 30)])
    next(listener)
    listener.close()
    assert not engine.has_work


def test_prompts_have_log_probabilities_in_any_pieces() -> None:
    decoder = make_decoder("mixed")
    ids = tuple((7 * i) % 50 for i in range(60))
    expected = decoder(torch.tensor([ids]))[0].log_softmax(-1)
    for chunk_tokens in (1, 7, 512):
        engine = Engine(decoder, chunk_tokens=chunk_tokens)
        request = ask(ids, 1, prompt_logprobs=True, num_top_logprobs=3)
        (event,) = engine.generate([request])
        assert event.prompt_logprobs is not None
        assert [token.token_id for token in event.prompt_logprobs] == list(ids[1:])
        for at, token in enumerate(event.prompt_logprobs):
            assert abs(token.logprob - expected[at, ids[at + 1]].item()) < 1e-5
            assert [id for id, _ in token.top] == expected[at].topk(3).indices.tolist()
        assert len(event.top_logprobs) == 3


def test_nothing_to_generate_is_an_answer_too() -> None:
    engine = Engine(make_decoder("mixed"))
    (event,) = engine.generate([ask((1, 2, 3), 0, prompt_logprobs=True)])
    assert (event.token_id, event.finish_reason) == (None, "length")
    assert event.prompt_logprobs is not None
    assert len(event.prompt_logprobs) == 2


def test_settings_under_which_nothing_runs_are_refused() -> None:
    decoder = make_decoder("mixed")
    with pytest.raises(ValueError, match="chunk_tokens 0: nothing could ever run"):
        Engine(decoder, chunk_tokens=0)
    with pytest.raises(ValueError, match="page_size 20: give a multiple of 8"):
        Engine(decoder, page_size=20)
    with pytest.raises(ValueError, match="exclude one another"):
        Engine(decoder, batch_invariant=True, cuda_graphs=True)
    with pytest.raises(ValueError, match="give it more memory"):
        Engine(decoder, memory_mib=0.001)
    with pytest.raises(ValueError, match=r"torch.float16, whose range"):
        Engine(make_decoder("mixed").half())
    engine = Engine(decoder)
    number = engine.add(ask((1,), 9))
    with pytest.raises(ValueError, match="token ids from 50 to 50, but the model knows 0 to 49"):
        engine.force(number, (50,))
    with pytest.raises(ValueError, match="request 7: not running"):
        engine.force(7, (1,))


def test_a_refused_weight_leaves_the_engine_as_its_decoder() -> None:
    old, new = make_decoder("mixed", seed=1), make_decoder("mixed", seed=2)
    engine, request = Engine(old), ask(tuple(range(20)), 6)
    before = tokens(list(engine.generate([request])))
    weights = [*new.named_parameters(), ("model.norm.weight", torch.zeros(1))]
    with pytest.raises(ValueError, match=r"model.norm.weight: shape \(1,\), but .* \(32,\)"):
        engine.load_weights(weights, version=1)
    after = tokens(list(engine.generate([request])))
    assert after == [token for token, _, _ in naive(new, request)] != before


def test_new_weights_are_used_from_the_beginning_of_a_text() -> None:
    old, new = make_decoder("mixed", seed=1), make_decoder("mixed", seed=2)
    engine = Engine(old)
    number = engine.add(ask(tuple(range(1, 20)), 8))
    ids = tokens([event for _ in range(4) for event in engine.step()])
    engine.load_weights(list(new.named_parameters()), version=1)
    while engine.has_work:
        ids += tokens([event for event in engine.step() if event.request == number])
    text = (*range(1, 20), *ids[:4])
    assert [token for token, _, _ in naive(new, ask(text, 4))] == ids[4:]
