"""Filters and penalties against transformers' own, and draws against the distribution."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from engines import ask
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fretsaw.engine.draws import choose, filter_probs, penalise
from fretsaw.engine.sampling import (
    MAX_INTEGER,
    MAX_PENALTY,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
    Sampling,
)
from fretsaw.engine.sequence import Request, SequenceState

VOCAB = 40


def logits_of(rows: int) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(0))


def warp(warper: Any, logits: torch.Tensor) -> torch.Tensor:
    return warper(torch.zeros(len(logits), 1, dtype=torch.long), logits)


def sequence_of(request: Request, generated: list[int]) -> SequenceState:
    return SequenceState(0, request, [*request.token_ids, *generated])


@pytest.mark.parametrize(
    ("setting", "warper"),
    [
        ({"top_k": 7}, TopKLogitsWarper(7)),
        ({"top_p": 0.8}, TopPLogitsWarper(0.8)),
        ({"top_p": 0.01}, TopPLogitsWarper(0.01)),
        ({"min_p": 0.1}, MinPLogitsWarper(0.1)),
    ],
)
def test_filters_keep_what_transformers_keeps(setting: dict, warper) -> None:
    logits = logits_of(16)
    expected = warp(warper, logits.clone()).softmax(-1)
    kept = filter_probs(logits.softmax(-1), [Sampling(**setting)] * 16)
    torch.testing.assert_close(kept / kept.sum(-1, keepdim=True), expected)


def test_filters_act_in_order() -> None:
    logits = logits_of(16)
    warped = logits.clone()
    for warper in (TopKLogitsWarper(9), TopPLogitsWarper(0.9), MinPLogitsWarper(0.2)):
        warped = warp(warper, warped)
    settings = [Sampling(top_k=9, top_p=0.9, min_p=0.2)] * 16
    kept = filter_probs(logits.softmax(-1), settings)
    torch.testing.assert_close(kept / kept.sum(-1, keepdim=True), warped.softmax(-1))


def test_rows_have_their_own_filters() -> None:
    logits = logits_of(2)
    kept = filter_probs(logits.softmax(-1), [Sampling(), Sampling(top_k=1)])
    assert (kept > 0).sum(-1).tolist() == [VOCAB, 1]


def test_the_repetition_penalty_is_transformers() -> None:
    logits, request = (
        logits_of(1),
        ask((1, 2, 3), 9, repetition_penalty=1.4),
    )
    sequence = sequence_of(request, [7, 7, 9])
    penalty: Any = RepetitionPenaltyLogitsProcessor(1.4)
    expected = penalty(torch.tensor([sequence.token_ids]), logits.clone())
    torch.testing.assert_close(penalise(logits, [sequence]), expected)


def test_presence_and_frequency_count_what_was_generated() -> None:
    logits = logits_of(1)
    request = ask((1, 7), 9, presence_penalty=0.5, frequency_penalty=0.25)
    penalised = penalise(logits, [sequence_of(request, [7, 7, 9])])
    taken = (logits - penalised)[0]
    assert taken[7].item() == pytest.approx(0.5 + 2 * 0.25)
    assert taken[9].item() == pytest.approx(0.5 + 0.25)
    assert taken[1].item() == 0  # only in the prompt


def test_a_draw_never_leaves_the_filter() -> None:
    sampling = Sampling(max_tokens=1, temperature=2.0, top_k=3)
    logits = logits_of(1).repeat(2000, 1)
    sequences = [
        sequence_of(Request((1,), replace(sampling, seed=seed)), []) for seed in range(2000)
    ]
    drawn = choose(logits, sequences)
    assert set(drawn.tolist()) == set(logits[0].topk(3).indices.tolist())
    wanted = (logits[0].topk(3).values / 2).softmax(-1)
    found = torch.stack([(drawn == i).float().mean() for i in logits[0].topk(3).indices])
    assert (found - wanted).abs().max() < 4 * (0.25 / 2000) ** 0.5


def test_negative_seeds_are_seeds_too() -> None:
    sequence = sequence_of(ask((1,), 1, temperature=1.0, seed=-5), [])
    assert 0 <= int(choose(logits_of(1), [sequence])[0]) < VOCAB


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.0),
        ("repetition_penalty", 0.0),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    settings = {"max_tokens": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} {value}: must be"):
        Request((1,), Sampling(**settings))


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_tokens", value) for value in (2**63, 10**30, 1.5, True, "9")],
        *[("temperature", value) for value in (1e300, 1001, INFINITY, NAN, "1", None)],
        *[("top_k", value) for value in (2**63, 99999999999999999999, 7.0, NAN)],
        *[("top_p", value) for value in (-1e-300, 1.0000001, NAN, INFINITY)],
        *[("min_p", value) for value in (-1e-9, 1, NAN)],
        *[("repetition_penalty", value) for value in (1e-320, 0.0099, 101, 1e308, NAN, -1)],
        *[("presence_penalty", value) for value in (1e300, -1001, NAN, -INFINITY)],
        *[("frequency_penalty", value) for value in (1e300, -1001, NAN, INFINITY)],
        *[("seed", value) for value in (2**127, -(2**128), 1.0)],
    ],
)
def test_numbers_that_the_draws_cannot_hold_are_refused(name: str, value: Any) -> None:
    sampling = Sampling()
    object.__setattr__(sampling, name, value)  # as from a file: of any type
    with pytest.raises(ValueError, match=rf"{name} .*: must be "):
        Request((1,), sampling)


SCALES = st.sampled_from([1e-38, 1e-3, 1.0, 1e4, 1e30, 3e38])
SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.one_of(
            st.sampled_from([0.0, 1e-300, 1e-30, 1.0, MAX_TEMPERATURE]), st.floats(0, 2)
        ),
        "top_k": st.sampled_from([0, 1, 3, VOCAB + 1, MAX_INTEGER]),
        "top_p": st.sampled_from([1e-300, 1e-9, 0.5, 1 - 1e-16, 1.0]),
        "min_p": st.sampled_from([0.0, 1e-300, 0.5, 1 - 1e-16]),
        "repetition_penalty": st.sampled_from([MIN_REPETITION_PENALTY, 1.0, 1.3, 100.0]),
        "presence_penalty": st.sampled_from([-MAX_PENALTY, 0.0, MAX_PENALTY]),
        "frequency_penalty": st.sampled_from([-MAX_PENALTY, 0.0, MAX_PENALTY]),
        "seed": st.sampled_from([-(2**127), -1, 0, 2**63, 2**127 - 1]),
    }
)


@given(rows=st.lists(st.tuples(SETTINGS, SCALES, st.booleans()), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_settings_within_their_ranges_draw_a_token_that_is_not_masked(rows: list) -> None:
    """The logits may be of any size, most of them masked; a row's draw is its own."""
    logits = logits_of(len(rows)) / 12
    for row, (_, scale, is_masked) in enumerate(rows):
        logits[row] *= scale
        if is_masked:
            logits[row, 2:] = -torch.inf
    sequences = [sequence_of(ask((1, 2, 3), 99, **setting), [1, 1, 7]) for setting, _, _ in rows]
    drawn = choose(logits, sequences).tolist()
    for row, (token, sequence) in enumerate(zip(drawn, sequences, strict=True)):
        assert logits[row, token].isfinite()
        assert choose(logits[row : row + 1], [sequence]).tolist() == [token]


def test_a_temperature_of_almost_nothing_is_greedy() -> None:
    logits = logits_of(8)
    for temperature in (1e-300, 1e-30, 1e-6):
        sequence = sequence_of(ask((1,), 1, temperature=temperature), [])
        assert choose(logits, [sequence] * 8).tolist() == logits.argmax(-1).tolist()
