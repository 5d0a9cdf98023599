"""The policy loss against numbers worked by hand."""

import math

import pytest
import torch

from fretsaw.rl.loss import clipped_surrogate, importance_weights, kl_penalty, token_weights


def test_clipped_surrogate_by_hand():
    # Ratios 1.5 and 0.5 of old probabilities, clipped to 0.8 .. 1.2.
    logprobs = torch.tensor([1.5, 1.5, 0.5, 0.5]).log()
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0])
    loss = clipped_surrogate(logprobs, torch.zeros(4), advantages, 0.2, 0.2)
    # A gain is limited (1.2 of 1.5, -0.8 of -0.5), a loss is not (3.0; -1.0).
    assert loss.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6])
    higher = clipped_surrogate(logprobs, torch.zeros(4), advantages, 0.2, 0.28)
    assert higher.tolist() == pytest.approx([-2.56, 3.0, -1.0, 1.6])


def test_on_policy_its_gradient_is_that_of_reinforce():
    logprobs = torch.randn(50, requires_grad=True)
    advantages = torch.randn(50)
    clipped_surrogate(logprobs, logprobs.detach(), advantages, 0.2, 0.2).sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, -advantages)


def test_kl_penalty_by_hand():
    # d = log(0.5 / 0.25) = log 2: 2 - log 2 - 1; equal probabilities cost nothing.
    penalty = kl_penalty(torch.tensor([0.25, 0.5]).log(), torch.tensor([0.5, 0.5]).log())
    assert penalty.tolist() == pytest.approx([1 - math.log(2), 0.0])


def test_a_small_kl_penalty_is_not_rounded_away():
    # d = 1e-4 in float32: exp(d) - d - 1 = d^2 / 2 + d^3 / 6.
    penalty = kl_penalty(torch.tensor([-1e-4]), torch.tensor([0.0]))
    assert penalty.item() == pytest.approx(5e-9, rel=1e-2)


def test_importance_weights_by_hand():
    inf = float("inf")
    weights = importance_weights(
        torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.5, 0.0]).log()
    )
    assert weights.tolist() == pytest.approx([2.0, 1.0, 0.0])  # -inf - -inf is no number
    assert importance_weights(torch.tensor([0.0]), torch.tensor([-inf])).tolist() == [0.0]


def test_weights_of_an_update_sum_to_one():
    lengths = torch.tensor([3, 1, 4])
    by_sequence = token_weights(lengths, "sequence", num_answers=3, num_tokens=8)
    assert by_sequence.tolist() == pytest.approx([1 / 9] * 3 + [1 / 3] + [1 / 12] * 4)
    assert token_weights(lengths, "token", num_answers=3, num_tokens=8).tolist() == [1 / 8] * 8
    # Where one answer was left out, the others keep their share.
    rest = token_weights(lengths[:2], "sequence", num_answers=3, num_tokens=8)
    assert rest.tolist() == pytest.approx([1 / 9] * 3 + [1 / 3])
