"""The policy loss, token by token, as pure functions of log-probabilities.

Tokens are those of the answers alone, laid end to end: their number is ragged over answers. A loss
is the weighted sum over them, and the weights say how it is averaged; so the cut into micro-batches
and rows changes nothing.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Average = Literal["sequence", "token"]


def token_weights(
    lengths: Int[Tensor, " answers"], average: Average, *, num_answers: int, num_tokens: int
) -> Float[Tensor, " tokens"]:
    """Return every token's share of the loss of a whole update.

    sequence: 1 / (answer's length x number of answers), the mean over answers of their token means;
    token: 1 / number of tokens. `num_answers` and `num_tokens` count the whole update, also the
    answers that are left out because their advantage is 0.
    """
    if average == "token":
        return torch.full((int(lengths.sum()),), 1.0 / num_tokens)
    return (1.0 / (lengths * num_answers).float()).repeat_interleave(lengths)


def clipped_surrogate(
    logprobs: Float[Tensor, " tokens"],
    prev_logprobs: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, " tokens"]:
    """Return max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high)), rho = pi / pi_prev.

    PPO's clipped objective (arXiv 1707.06347) with GRPO's advantages (arXiv 2402.03300). Where
    pi_prev is pi, its gradient is that of REINFORCE, -A grad log pi.
    """
    ratio = (logprobs - prev_logprobs).exp()
    return torch.maximum(
        -advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    )


def kl_penalty(
    logprobs: Float[Tensor, " tokens"], ref_logprobs: Float[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Return exp(d) - d - 1 with d = log pi_ref - log pi: the k3 estimate of KL(pi || pi_ref)."""
    difference = ref_logprobs - logprobs
    return difference.expm1() - difference  # about d^2 / 2, which exp(d) - 1 would round away


def importance_weights(
    trainer_logprobs: Float[Tensor, " tokens"], engine_logprobs: Float[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Return exp(log pi_trainer - log pi_engine), 0 where that is not finite.

    Corrects for an engine that samples from slightly other probabilities than the trainer's, such
    as one in FP8 (Llama-Nemotron's code, an option there and here).
    """
    weights = (trainer_logprobs - engine_logprobs).exp()
    return weights.where(weights.isfinite(), 0.0)
