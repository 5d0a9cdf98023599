"""The cached engine against the plain forward, and the seed against the batch."""

import pytest
import torch
from engines import ask

from fretsaw.engine.draws import uniform
from fretsaw.engine.engine import Engine
from fretsaw.engine.sequence import Request
from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.model.decoder import Decoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    names = [("gqa4", "ffn32"), ("attn_none", "ffn48"), ("gqa1", "ffn_none"), ("gqa2", "ffn16")]
    config = ModelConfig(
        vocab_size=50,
        hidden_size=32,
        num_attention_heads=4,
        head_dim=8,
        blocks=blocks_from_names(names),
        max_position_embeddings=64,
    )
    decoder = Decoder(config)
    decoder.init_weights(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4)  # logits apart enough that greedy choices are not ties
    return decoder


def collect(engine: Engine, requests: list[Request]) -> list[list[tuple[int, float]]]:
    made: list[list[tuple[int, float]]] = [[] for _ in requests]
    for event in engine.generate(requests):
        assert event.token_id is not None
        made[event.request].append((event.token_id, event.logprob))
    return made


PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 8, 9, 10), (11, 12)]


def test_greedy_equals_the_uncached_forward(decoder: Decoder) -> None:
    made = collect(Engine(decoder), [ask(prompt, 12) for prompt in PROMPTS])
    for prompt, tokens in zip(PROMPTS, made, strict=True):
        ids = list(prompt)
        for token_id, logprob in tokens:
            expected = decoder(torch.tensor([ids]))[0, -1].log_softmax(-1)
            assert token_id == expected.argmax().item()
            assert abs(logprob - expected[token_id].item()) < 1e-5
            ids.append(token_id)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(decoder: Decoder) -> None:
    requests = [ask(p, 10, temperature=1.0, seed=i) for i, p in enumerate(PROMPTS)]
    together = collect(Engine(decoder), requests)
    alone = [collect(Engine(decoder, max_batch=1), [request])[0] for request in requests]
    assert [[t for t, _ in row] for row in together] == [[t for t, _ in row] for row in alone]
    other = collect(Engine(decoder), [ask(PROMPTS[0], 10, temperature=1.0, seed=99)])
    assert other[0] != together[0]


def test_samples_follow_the_distribution(decoder: Decoder) -> None:
    requests = [ask((1, 2), 1, temperature=1.0, seed=seed) for seed in range(4000)]
    drawn = torch.tensor([row[0][0] for row in collect(Engine(decoder, max_batch=500), requests)])
    wanted = decoder(torch.tensor([[1, 2]]))[0, -1].softmax(-1)
    found = torch.bincount(drawn, minlength=50) / 4000
    assert (found - wanted).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_uniform_numbers_are_uniform() -> None:
    import numpy as np

    draws = np.stack([uniform(np.arange(1000, dtype=np.uint64), t) for t in range(20)])
    assert 0 <= draws.min() < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(draws[0], draws[1])[0, 1]) < 0.1


def test_stop_tokens_end_a_request_and_leave_the_others(decoder: Decoder) -> None:
    free = collect(Engine(decoder), [ask(p, 12) for p in PROMPTS])
    stop = free[0][2][0]
    requests = [ask(p, 12, stop_token_ids=(stop,) if i == 0 else ()) for i, p in enumerate(PROMPTS)]
    events = list(Engine(decoder).generate(requests))
    first = [event for event in events if event.request == 0]
    assert first[-1].finish_reason == "stop"
    assert first[-1].token_id == stop
    rows = collect(Engine(decoder), requests)
    assert [t for t, _ in rows[1]] == [t for t, _ in free[1]]


def test_logprobs_are_those_of_the_forward(decoder: Decoder) -> None:
    ids = [3, 1, 4, 1, 5, 9]
    expected = decoder(torch.tensor([ids])).log_softmax(-1)[0]
    got = Engine(decoder).logprobs(ids)
    assert got == pytest.approx([expected[i, ids[i + 1]].item() for i in range(5)], abs=1e-5)


def test_too_long_a_request_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ValueError, match="context is 64"):
        list(Engine(decoder).generate([ask((1,) * 60, 10)]))
    with pytest.raises(ValueError, match="empty prompt"):
        list(Engine(decoder).generate([ask((), 10)]))


def test_weights_are_exchanged_in_place(decoder: Decoder) -> None:
    other = Decoder(decoder.config)
    other.init_weights(7)
    engine = Engine(other)
    engine.load_weights(decoder.named_parameters(), version=3)
    assert collect(engine, [ask((1, 2), 5)]) == collect(Engine(decoder), [ask((1, 2), 5)])
    assert engine.stats().weight_version == 3
    with pytest.raises(ValueError, match="no such weight"):
        engine.load_weights([("nothing", torch.zeros(1))], version=4)
