"""Training losses as pure functions of hidden states and head weights.

The output head is applied in chunks of tokens: with a vocabulary of 128k the logits of a long batch
are the largest tensor of all, and a chunk is recomputed in the backward pass instead of kept.
Every function returns a *sum* over tokens, so that the caller divides by the global token count.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fretsaw.model.decoder import Decoder
from fretsaw.training.precision import autocast

MAX_LOGITS = 1 << 25  # elements of one chunk of logits: 128 MiB in float32


def _over_chunks(
    function: Callable[..., Tensor], vocab_size: int, *per_token: Tensor
) -> list[Tensor]:
    num_tokens = per_token[0].shape[0]
    size = max(1, MAX_LOGITS // vocab_size)
    if num_tokens <= size:
        return [function(*per_token)]
    return [
        checkpoint(function, *(t[at : at + size] for t in per_token), use_reentrant=False)
        for at in range(0, num_tokens, size)
    ]


def cross_entropy(
    hidden: Float[Tensor, "tokens hidden"],
    head_weight: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
) -> Float[Tensor, ""]:
    """Return the summed next-token cross-entropy in nats; targets of -100 do not count."""

    def loss(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(hidden, head_weight).float()
        return F.cross_entropy(logits, targets, reduction="sum")

    return torch.stack(_over_chunks(loss, head_weight.shape[0], hidden, targets)).sum()


def token_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    head_weight: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """Return log p(target) of every token, in nats."""

    def logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(hidden, head_weight).float()
        return -F.cross_entropy(logits, targets, reduction="none")

    return torch.cat(_over_chunks(logprobs, head_weight.shape[0], hidden, targets))


def packed_logprobs(
    decoder: Decoder,
    token_ids: Int64[np.ndarray, "rows row_len"],
    cu_seqlens: Int64[np.ndarray, " documents_plus_1"],
    positions: Int64[np.ndarray, " tokens"],
    targets: Int64[np.ndarray, " tokens"],
    *,
    dtype: str,
) -> Float[Tensor, " tokens"]:
    """Return log p(target) at the given positions of packed rows, laid end to end.

    The output head is applied to those positions alone.
    """
    ids, documents, at, wanted = (
        torch.from_numpy(array).to(decoder.device)
        for array in (token_ids, cu_seqlens, positions, targets)
    )
    with autocast(decoder.device, dtype):
        hidden = decoder.hidden_states(ids, cu_seqlens=documents).flatten(0, 1)
        return token_logprobs(hidden[at], decoder.head_weight, wanted)


def kl_divergence(
    teacher_hidden: Float[Tensor, "tokens hidden"],
    teacher_head: Float[Tensor, "vocab hidden"],
    student_hidden: Float[Tensor, "tokens hidden"],
    student_head: Float[Tensor, "vocab hidden"],
) -> Float[Tensor, ""]:
    """Return the summed KL(teacher || student) of next-token distributions, in nats.

    Puzzle, arXiv 2411.19146: the logit term of global knowledge distillation.
    """

    def loss(teacher_hidden: Tensor, student_hidden: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = F.linear(teacher_hidden, teacher_head).float().log_softmax(-1)
        student = F.linear(student_hidden, student_head).float().log_softmax(-1)
        return kl_from_log_probs(teacher, student).sum()

    sums = _over_chunks(loss, teacher_head.shape[0], teacher_hidden, student_hidden)
    return torch.stack(sums).sum()


def kl_from_log_probs(
    teacher: Float[Tensor, "tokens vocab"], student: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """Return sum_v p(v) (log p(v) - log q(v)) for every token, exactly 0 where p equals q."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def normalised_mse(
    output: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """Return MSE(output, target) / MSE(target, 0), Puzzle's loss of a block (arXiv 2411.19146)."""
    return (output - target).square().mean() / target.square().mean()


def cosine_distance(
    teacher: Float[Tensor, "tokens hidden"], student: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, ""]:
    """Return the summed 1 - cos of one layer's hidden states (Puzzle, arXiv 2411.19146)."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum()
