"""What goes wrong in a step ends the request at fault; its neighbours never hear of it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from engines import ask, make_decoder

from fretsaw.engine.engine import Engine
from fretsaw.engine.outcome import speak
from fretsaw.engine.runner import Step
from fretsaw.engine.sequence import Event, Request, RequestFailed, SequenceState, Slice, whole
from fretsaw.model.decoder import Decoder

POISON = 49  # a token whose embedding is NaN
CLEAN = [  # none of which draws the poison
    ask((1, 2, 3), 20),
    ask((4,), 25, temperature=1.0, seed=2),
    ask(tuple(range(30)), 12, temperature=0.8, seed=2, top_k=9),
    ask((*range(30), 7, 7), 9),
    ask((11, 12), 16, temperature=1.3, seed=3, repetition_penalty=1.2, prompt_logprobs=True),
]
POISONED = [
    ask((1, 2, POISON), 20),
    ask((*range(30), POISON, 5, 6), 20, temperature=1.0),
    ask((POISON,), 9, prompt_logprobs=True),
    ask((*range(9), POISON, *range(9, 40)), 5),
]
ENGINES = {
    "plain": {},
    "in pieces": {"chunk_tokens": 7},
    "one at a time": {"max_batch": 1},
    "padded": {"cuda_graphs": True},
    "batch-invariant": {"batch_invariant": True, "chunk_tokens": 16, "max_batch": 8},
    "little memory": {"memory_mib": 20 * 7 * 2 * 4 * 64 / 2**20, "max_batch": 8},
}
Told = dict[int, list[Event]]


def poisonous() -> Decoder:
    decoder = make_decoder("mixed")
    with torch.no_grad():
        # Never chosen, though the head may be the embedding: it is finite there.
        decoder.model.embed_tokens.weight = torch.nn.Parameter(
            decoder.model.embed_tokens.weight.clone()
        )
        decoder.model.embed_tokens.weight[POISON] = torch.nan
    return decoder


def run(engine: Engine, requests: Sequence[Request]) -> Told:
    """Return the events of all requests, by their place; they arrive two a step."""
    told: Told = {place: [] for place in range(len(requests))}
    waiting, place_of = list(enumerate(requests)), {}
    while waiting or engine.has_work:
        for place, request in waiting[:2]:
            place_of[engine.add(request)] = place
        waiting = waiting[2:]
        for event in engine.step():
            told[place_of[event.request]].append(event)
    stats = engine.stats()
    assert (stats.pages_used, stats.num_running, stats.num_waiting) == (0, 0, 0)
    return told


def assert_same(found: Sequence[Event], expected: Sequence[Event], tolerance: float = 1e-5) -> None:
    assert [event.token_id for event in found] == [event.token_id for event in expected]
    assert found[-1].finish_reason == expected[-1].finish_reason != "error"
    for one, other in zip(found, expected, strict=True):
        assert abs(one.logprob - other.logprob) <= tolerance
        for token, same in zip(one.prompt_logprobs or (), other.prompt_logprobs or (), strict=True):
            assert abs(token.logprob - same.logprob) <= tolerance


@pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES)
def test_a_text_that_turns_to_nan_fails_alone(options: dict[str, Any]) -> None:
    decoder = poisonous()
    expected = run(Engine(decoder, page_size=8, **options), CLEAN)
    engine = Engine(decoder, page_size=8, **options)
    mixed: list[Request] = []
    for place, request in enumerate(CLEAN):  # poisoned ones before, between and after
        mixed += [*POISONED[place : place + 1], request]
    for _ in range(3):  # the later rounds have the pages, and the prefixes, of the earlier
        told = run(engine, mixed)
        for place, request in enumerate(mixed):
            if request in POISONED:
                (last,) = told[place]
                assert last.finish_reason == "error"
                assert last.token_id is None
                assert "the model's logits are not finite (NaN or infinity)" in (last.error or "")
            else:
                # No rounding differs where the shapes of all products are the same.
                tolerance = 0 if options.get("batch_invariant") else 1e-5
                assert_same(told[place], expected[CLEAN.index(request)], tolerance)
        assert_same(run(engine, CLEAN)[2], expected[2])


def test_a_clean_beginning_read_beside_poison_is_found_by_nobody() -> None:
    decoder = poisonous()
    begins = tuple(range(24))
    expected = run(Engine(decoder, page_size=8), [ask((*begins, 3), 9)])
    engine = Engine(decoder, page_size=8)
    run(engine, [ask((*begins, POISON, 3), 9)])
    assert_same(run(engine, [ask((*begins, 3), 9)])[0], expected[0])
    assert engine.stats().prefix_hit_tokens == 0


@pytest.mark.parametrize("is_running", [True, False])
def test_a_beginning_that_another_text_holds_outlives_a_fault(is_running: bool) -> None:
    decoder = poisonous()
    begins = tuple(range(24))
    expected = run(Engine(decoder, page_size=8), [ask((*begins, 3), 9)])
    engine = Engine(decoder, page_size=8)
    engine.add(ask((*begins, 7), 30))
    while engine.has_work if not is_running else engine.stats().decode_tokens < 3:
        engine.step()
    bad = engine.add(ask((*begins, POISON, 3), 9))
    while not any(event.request == bad for event in engine.step()):
        pass
    before = engine.stats().prefix_hit_tokens
    found = engine.generate([ask((*begins, 3), 9)])
    assert_same(list(found), expected[0])
    assert engine.stats().prefix_hit_tokens == before + 24


@pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES)
def test_memory_full_of_nan_is_seen_by_nobody(options: dict[str, Any]) -> None:
    decoder = make_decoder("mixed")
    expected = run(Engine(decoder, page_size=8, **options), CLEAN)
    engine = Engine(decoder, page_size=8, **options)
    for value in (torch.nan, torch.inf, 3e38):
        for pool in (*engine._runner.keys, *engine._runner.values):
            pool.fill_(value)
        engine.sleep()  # nothing is kept for reuse
        engine.wake()
        told = run(engine, CLEAN)
        for place in told:
            assert_same(told[place], expected[place])


def test_a_text_that_is_forced_to_poison_fails_in_the_middle() -> None:
    decoder = poisonous()
    expected = run(Engine(decoder), CLEAN)
    engine = Engine(decoder)
    numbers = [engine.add(request) for request in (*CLEAN, ask((1, 2, 3, 4), 30))]
    events = [event for _ in range(4) for event in engine.step()]
    engine.force(numbers[-1], (5, POISON))
    while engine.has_work:
        events += engine.step()
    *whole, cut = ([event for event in events if event.request == n] for n in numbers)
    for found, same in zip(whole, expected.values(), strict=True):
        assert_same(found, same)
    assert [event.finish_reason for event in cut] == [None] * (len(cut) - 1) + ["error"]


def break_draw(engine: Engine, number: int) -> None:
    """Give a request that runs a setting that no draw can hold."""
    object.__setattr__(engine._sequences[number].request.sampling, "top_k", "seven")


def break_text(engine: Engine, number: int) -> None:
    """Give a text a token that the embedding does not have."""
    engine._sequences[number].token_ids[-1] = 10**6


@pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize("breaks", [break_draw, break_text])
def test_an_error_in_a_step_ends_its_own_request(
    breaks: Callable[[Engine, int], None], num_steps: int, options: dict[str, Any], capsys
) -> None:
    decoder = make_decoder("mixed")
    expected = run(Engine(decoder, page_size=8, **options), CLEAN)
    engine = Engine(decoder, page_size=8, **options)
    bad = engine.add(ask((9, 8, 7), 30, temperature=1.0))
    numbers = [engine.add(request) for request in CLEAN]
    events = [event for _ in range(num_steps) for event in engine.step()]
    breaks(engine, bad)
    while engine.has_work:
        events += engine.step()
    for number, same in zip(numbers, expected.values(), strict=True):
        assert_same([event for event in events if event.request == number], same)
    last = [event for event in events if event.request == bad][-1]
    assert (last.token_id, last.finish_reason) == (None, "error")
    assert "Error: " in (last.error or "")
    assert engine.stats().pages_used == 0
    log = capsys.readouterr().err
    assert f"engine: request {bad} (3 prompt tokens, " in log
    assert "Traceback" in log


def too_large(engine: Engine, most: int, error: Exception) -> None:
    """Let a step of more than so many tokens raise."""
    whole = engine._runner.hidden

    def hidden(step: Step) -> torch.Tensor:
        if step.num_tokens > most:
            raise error
        return whole(step)

    engine._runner.hidden = hidden


def test_a_step_that_is_too_large_is_computed_in_parts(capsys) -> None:
    decoder = make_decoder("mixed")
    expected = run(Engine(decoder), CLEAN)
    engine = Engine(decoder, chunk_tokens=3)
    too_large(engine, 3, torch.OutOfMemoryError("2 GiB more"))
    told = run(engine, CLEAN)
    for place in told:
        assert_same(told[place], expected[place])
    assert "sequences failed (OutOfMemoryError: 2 GiB more); computing them apart" in (
        capsys.readouterr().err
    )


def test_a_prompt_that_is_too_large_by_itself_fails() -> None:
    engine = Engine(make_decoder("mixed"))
    too_large(engine, 10, MemoryError())
    told = run(engine, [*CLEAN[:2], ask(tuple(range(11)), 9)])
    assert [told[place][-1].finish_reason for place in told] == ["length", "length", "error"]
    assert told[2][-1].error == "MemoryError: "


def test_a_lost_device_is_the_end() -> None:
    engine = Engine(make_decoder("mixed"))
    engine.add(CLEAN[0])
    too_large(engine, 0, torch.AcceleratorError("CUDA error: device-side assert triggered", 710))
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        engine.step()


def test_who_listens_is_told_which_request_failed() -> None:
    engine = Engine(poisonous())
    asked = [CLEAN[0], POISONED[0], CLEAN[1]]
    ends = {e.request: e for e in engine.generate(asked) if e.finish_reason is not None}
    assert [ends[i].finish_reason for i in range(3)] == ["length", "error", "length"]
    assert "the model's logits are not finite" in (ends[1].error or "")
    with pytest.raises(RequestFailed, match=r"request 1: the model's logits are not finite"):
        list(whole(engine.generate(asked)))
    assert not engine.has_work
    with pytest.raises(RequestFailed, match=r"within the first 4 tokens of its text"):
        engine.logprobs((1, 2, POISON, 4))
    assert not engine.has_work
    assert engine.stats().pages_used == 0
    assert len(engine.logprobs((1, 2, 3))) == 2


def test_rows_that_are_no_distribution_fail_and_masked_tokens_do_not() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    logits[1, 7] = torch.nan
    logits[2, 7] = torch.inf
    logits[3] = -torch.inf
    logits[4, 2:] = -torch.inf
    slices = [
        Slice(SequenceState(row, ask((1, 2), 9, temperature=1.0, seed=row), [1, 2]), 0, 2)
        for row in range(6)
    ]
    outcomes = speak(logits, slices)
    assert [outcome.fault is None for outcome in outcomes] == [
        True,
        False,
        False,
        False,
        True,
        True,
    ]
    for row in (0, 4, 5):
        (alone,) = speak(logits[row : row + 1], slices[row : row + 1])
        assert alone == outcomes[row]
        assert alone.spoken is not None
        assert alone.spoken.logprob > -torch.inf


def test_token_ids_that_are_no_numbers_are_refused() -> None:
    engine = Engine(make_decoder("mixed"))
    for ids in ((2**63,), (1, -(2**80))):
        with pytest.raises(ValueError, match="whole numbers"):
            engine.add(ask(ids, 2))
    with pytest.raises(ValueError, match="token ids from -1 to 1"):
        engine.add(ask((1, -1), 2))
