"""One update: the gradient of the policy loss over stored answers, packed into rows.

Whatever the cut into micro-batches, the packing and the order, the gradient is the same: a token's
share of the loss is known before the first forward.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fretsaw.data.pack import batch_of, pack
from fretsaw.model.decoder import Decoder
from fretsaw.rl.loss import clipped_surrogate, importance_weights, kl_penalty, token_weights
from fretsaw.rl.settings import RlSettings
from fretsaw.rollout.rows import Row
from fretsaw.training.losses import packed_logprobs


def is_used(row: Row, settings: RlSettings) -> bool:
    """Whether an answer has a gradient: without a KL penalty, an advantage of 0 has none.

    One that failed is no answer: its tokens came of numbers that went wrong.
    """
    return row.error is None and (row.advantage != 0 or settings.kl_coef > 0)


def policy_gradient(
    model: Decoder,
    rows: Sequence[Row],
    settings: RlSettings,
    dtype: str,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Add the gradient of one update's loss to the model; return the loss and its parts.

    `rows` are all answers of the update: the average counts those that are left out too, but for
    those that failed. `check` is
    called before each micro-batch's backward, and what it raises ends the update.
    """
    rows = [row for row in rows if row.error is None]
    used = [row for row in rows if is_used(row, settings)]
    num_tokens = sum(len(row.token_ids) for row in rows)
    sums = {"loss": 0.0, "kl": 0.0, "clipped": 0.0}
    for batch, logprobs in _forward(model, used, settings.micro_batch_tokens, dtype):
        check()
        answers = [used[i] for i in batch]
        lengths = torch.tensor([len(row.token_ids) for row in answers])
        weights = token_weights(
            lengths, settings.average, num_answers=len(rows), num_tokens=num_tokens
        ).to(logprobs)
        advantages = torch.tensor([row.advantage for row in answers]).repeat_interleave(lengths)
        advantages = advantages.to(logprobs)
        previous = _end_to_end([row.trainer_logprobs for row in answers]).to(logprobs)
        loss = clipped_surrogate(
            logprobs, previous, advantages, settings.clip_low, settings.clip_high
        )
        if settings.kl_coef:
            reference = _end_to_end([row.ref_logprobs for row in answers]).to(logprobs)
            kl = kl_penalty(logprobs, reference)
            loss = loss + settings.kl_coef * kl
            sums["kl"] += (weights * kl).sum().item()
        if settings.importance_correction:
            engine = _end_to_end([row.logprobs for row in answers]).to(logprobs)
            loss = loss * importance_weights(previous, engine)
        total = (weights * loss).sum()
        total.backward()
        ratio = (logprobs.detach() - previous).exp()
        outside = (ratio < 1 - settings.clip_low) | (ratio > 1 + settings.clip_high)
        sums["loss"] += total.item()
        sums["clipped"] += outside.sum().item() / num_tokens
    return sums


def answer_logprobs(
    model: Decoder, rows: Sequence[Row], micro_batch_tokens: int, dtype: str
) -> list[list[float]]:
    """Return the log-probability of every token of every answer, by the training forward."""
    found: list[list[float]] = [[] for _ in rows]
    with torch.no_grad():
        for batch, logprobs in _forward(model, rows, micro_batch_tokens, dtype):
            pieces = logprobs.split([len(rows[i].token_ids) for i in batch])
            for i, piece in zip(batch, pieces, strict=True):
                found[i] = piece.tolist()
    return found


def _end_to_end(values: Sequence[Sequence[float]]) -> Float[Tensor, " tokens"]:
    return torch.tensor([value for answer in values for value in answer])


def _forward(
    model: Decoder, rows: Sequence[Row], micro_batch_tokens: int, dtype: str
) -> Iterator[tuple[list[int], Float[Tensor, " tokens"]]]:
    """Yield (indices of answers, their tokens' log-probabilities end to end), packed."""
    if not rows:
        return
    sequences = [row.prompt_ids + row.token_ids for row in rows]
    loss_masks = [[False] * len(row.prompt_ids) + [True] * len(row.token_ids) for row in rows]
    row_len = max(map(len, sequences))
    bins = pack([len(ids) for ids in sequences], row_len)
    size = max(1, micro_batch_tokens // row_len)
    for at in range(0, len(bins), size):
        batch = batch_of(sequences, loss_masks, bins[at : at + size], row_len)
        yield batch.indices, packed_logprobs(model, *batch.arrays, dtype=dtype)
