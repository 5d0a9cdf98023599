"""What a step made of each slice, read from the network's numbers; nothing of it is settled yet.

Numbers that are not finite are the fault of their own text alone: every row is read by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fretsaw.engine.draws import choose
from fretsaw.engine.sequence import SequenceState, Slice, TokenLogprob


@dataclass
class Outcome:
    """What a step made of one slice."""

    spoken: TokenLogprob | None = None  # the next token, where the slice ends its text
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)  # those asked for
    fault: str | None = None  # why its request must end


def not_finite(num_tokens: int) -> str:
    """Return the fault of a text whose logits say nothing, having been read so far."""
    return (
        f"the model's logits are not finite (NaN or infinity) within the first {num_tokens} tokens "
        "of its text; look for weights that are not finite, or a precision too small for them"
    )


def speak(logits: Float[Tensor, "rows vocab"], slices: Sequence[Slice]) -> list[Outcome]:
    """Return the next token of slices that end their text."""
    sequences = [slice.sequence for slice in slices]
    finite = _tells(logits)
    if not all(flags := finite.tolist()):
        logits = logits.masked_fill(~finite[:, None], 0.0)
    log_probs = logits.log_softmax(-1)
    chosen = choose(logits, sequences)
    of_chosen = log_probs.gather(-1, chosen[:, None])[:, 0].tolist()
    outcomes = []
    for row, (slice, token_id) in enumerate(zip(slices, chosen.tolist(), strict=True)):
        if not flags[row]:
            outcomes.append(Outcome(fault=not_finite(slice.start + slice.length)))
            continue
        top = _strongest(log_probs[row], slice.sequence.request.num_top_logprobs)
        outcomes.append(Outcome(TokenLogprob(token_id, of_chosen[row], top)))
    return outcomes


def tell_prompts(
    outcomes: Sequence[Outcome],
    slices: Sequence[Slice],
    hidden: Float[Tensor, "tokens hidden"],
    logits_of: Callable[[Tensor], Tensor],
) -> None:
    """Note the log-probabilities of prompts that are asked for, and which of them say nothing.

    Every token read is looked at, since later texts may reuse its keys and values.
    """
    finite, first = hidden.isfinite().all(-1).tolist(), 0
    for outcome, slice in zip(outcomes, slices, strict=True):
        last = first + slice.length
        if not all(finite[first:last]):
            outcome.fault = not_finite(slice.start + slice.length)
        elif slice.sequence.request.prompt_logprobs and not slice.sequence.has_spoken:
            _tell_prompt(outcome, slice, hidden[first:last], logits_of)
        first = last


def _tell_prompt(
    outcome: Outcome,
    slice: Slice,
    hidden: Float[Tensor, "length hidden"],
    logits_of: Callable[[Tensor], Tensor],
) -> None:
    sequence: SequenceState = slice.sequence
    request, known = sequence.request, 1 + len(sequence.prompt_logprobs)  # the first token has none
    followers = request.token_ids[known : slice.start + slice.length + 1]
    if not followers:
        return
    # The hidden state at position p tells of the token at p + 1.
    logits = logits_of(hidden[known - 1 - slice.start :][: len(followers)]).float()
    if not _tells(logits).all():
        outcome.fault = not_finite(slice.start + slice.length)
        return
    log_probs = logits.log_softmax(-1)
    ids = torch.tensor(followers, device=log_probs.device)
    values = log_probs.gather(-1, ids[:, None])[:, 0].tolist()
    outcome.prompt_logprobs = [
        TokenLogprob(id, value, _strongest(row, request.num_top_logprobs))
        for id, value, row in zip(followers, values, log_probs, strict=True)
    ]


def _tells(logits: Float[Tensor, "rows vocab"]) -> Bool[Tensor, " rows"]:
    """Return whether a row is a distribution; tokens of minus infinity are only masked in it."""
    return logits.amax(-1).isfinite()  # of NaN it is NaN, of nothing but masked ones minus infinity


def _strongest(log_probs: Float[Tensor, " vocab"], number: int) -> tuple[tuple[int, float], ...]:
    if not number:
        return ()
    values, ids = log_probs.topk(min(number, len(log_probs)))
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))
