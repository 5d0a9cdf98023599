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
from fretsaw.training.settings import MAX_LOGITS


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


@torch.no_grad()
def top_k(
    hidden: Float[Tensor, "tokens hidden"], head_weight: Float[Tensor, "vocab hidden"], k: int
) -> tuple[Float[Tensor, "tokens k_plus_1"], Int64[Tensor, "tokens k"]]:
    """Return the k largest log-probabilities with, last, the log of what all others have together.

    With k = vocab nothing is left for the others, whose log is then -inf.
    """

    pairs = []
    for piece in hidden.split(max(1, MAX_LOGITS // head_weight.shape[0])):
        logits = F.linear(piece, head_weight).float()
        largest, ids = logits.topk(k, dim=-1)
        others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        total = logits.logsumexp(-1, keepdim=True)
        pairs.append((torch.cat([largest, others], -1) - total, ids))
    log_probs, ids = zip(*pairs, strict=True)
    return torch.cat(log_probs), torch.cat(ids)


def kl_from_top_k(
    teacher: Float[Tensor, "tokens k_plus_1"],
    ids: Int64[Tensor, "tokens k"],
    student_hidden: Float[Tensor, "tokens hidden"],
    student_head: Float[Tensor, "vocab hidden"],
) -> Float[Tensor, ""]:
    """Return the summed KL over the teacher's top k tokens and one bucket for all others, in nats.

    sum_{v in top k} p(v) (log p(v) - log q(v)) + P (log P - log Q), with P and Q what teacher and
    student leave to the other tokens; `teacher` ends with log P. Exact where k = vocab; else it is
    at most the whole KL, by the log-sum inequality.
    """

    def loss(teacher: Tensor, ids: Tensor, hidden: Tensor) -> Tensor:
        logits = F.linear(hidden, student_head).float()
        total = logits.logsumexp(-1, keepdim=True)
        student = logits.gather(-1, ids) - total
        if ids.shape[1] < logits.shape[1]:
            others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
            student = torch.cat([student, others - total], -1)
        return kl_from_log_probs(teacher[:, : student.shape[1]], student).sum()

    sums = _over_chunks(loss, student_head.shape[0], teacher, ids, student_hidden)
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
