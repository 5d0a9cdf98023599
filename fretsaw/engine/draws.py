"""Logits -> tokens: penalties, temperature, filters, and one uniform number a token.

The number is a function of the request's seed and of how many tokens it has generated, so what
else is in the batch never decides.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import SequenceState


def choose(
    logits: Float[Tensor, "rows vocab"], sequences: Sequence[SequenceState]
) -> Int[Tensor, " rows"]:
    """Return the next token of every sequence, by inverse transform where it is sampled."""
    settings = [sequence.request.sampling for sequence in sequences]
    if any(one.has_penalties for one in settings):
        logits = penalise(logits, sequences)
    chosen = logits.argmax(-1)
    rows = [row for row, one in enumerate(settings) if one.temperature > 0]
    if not rows:
        return chosen
    sampled = [settings[row] for row in rows]
    temperatures = torch.tensor([one.temperature for one in sampled], device=logits.device)
    below = logits[rows] - logits[rows].amax(-1, keepdim=True)  # 0 for the best, at any temperature
    probs = (below / temperatures[:, None].clamp(min=1e-30)).softmax(-1)
    if any(one.has_filters for one in sampled):
        probs = filter_probs(probs, sampled)
    cumulative = probs.double().cumsum(-1)
    seeds = np.array([one.seed % 2**64 for one in sampled], dtype=np.uint64)
    places = np.array([sequences[row].num_generated for row in rows], dtype=np.uint64)
    draws = torch.from_numpy(uniform(seeds, places)).to(logits.device)
    total = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, draws[:, None] * total, right=True)[:, 0]
    # A draw at the very end may fall behind the last token that has any probability.
    last = torch.searchsorted(cumulative, total)[:, 0]
    chosen[rows] = torch.minimum(drawn, last)
    return chosen


def penalise(
    logits: Float[Tensor, "rows vocab"], sequences: Sequence[SequenceState]
) -> Float[Tensor, "rows vocab"]:
    """Return logits with the repetition (arXiv 1909.05858), presence and frequency penalties.

    What leaves the range of float32 is put at its end, so that finite logits stay finite.
    """
    logits, most = logits.clone(), torch.finfo(logits.dtype).max
    for row, sequence in enumerate(sequences):
        request, sampling = sequence.request, sequence.request.sampling
        if not sampling.has_penalties:
            continue
        if sampling.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(sequence.token_ids)), device=logits.device)
            values, penalty = logits[row, seen], sampling.repetition_penalty
            penalised = torch.where(values > 0, values / penalty, values * penalty)
            logits[row, seen] = penalised.clamp(-most, most)
        if sampling.presence_penalty or sampling.frequency_penalty:
            counts = Counter(sequence.token_ids[len(request.token_ids) :])
            ids = torch.tensor(list(counts), dtype=torch.long, device=logits.device)
            number = torch.tensor(list(counts.values()), device=logits.device)
            taken = sampling.presence_penalty + sampling.frequency_penalty * number
            logits[row, ids] = (logits[row, ids] - taken).clamp(-most, most)
    return logits


def filter_probs(
    probs: Float[Tensor, "rows vocab"], settings: Sequence[Sampling]
) -> Float[Tensor, "rows vocab"]:
    """Return probabilities with those outside top-k, then top-p, then min-p set to zero.

    Top-p keeps the fewest most probable tokens that reach it, of what top-k left; min-p keeps
    those of at least this share of the most probable one's. Of equals the first ones stay.
    """
    vocab = probs.shape[-1]
    sorted_probs, ids = probs.sort(stable=True, dim=-1, descending=True)
    top_k = torch.tensor([[min(one.top_k or vocab, vocab)] for one in settings])
    top_k = top_k.to(probs.device)
    top_p = torch.tensor([[one.top_p] for one in settings], device=probs.device)
    min_p = torch.tensor([[one.min_p] for one in settings], device=probs.device)
    sorted_probs = sorted_probs * (torch.arange(vocab, device=probs.device) < top_k)
    before = sorted_probs.cumsum(-1) - sorted_probs
    kept = (before < top_p * sorted_probs.sum(-1, keepdim=True)) | (top_p == 1)
    kept[:, 0] = True
    kept &= sorted_probs >= min_p * sorted_probs[:, :1]
    return torch.zeros_like(probs).scatter(-1, ids, sorted_probs * kept)


def uniform(seeds: np.ndarray, positions: np.ndarray | int) -> np.ndarray:
    """Return one number in [0, 1) for every seed at its position (the SplitMix64 generator)."""
    with np.errstate(over="ignore"):
        step = np.asarray(positions, dtype=np.uint64) + np.uint64(1)
        z = seeds * np.uint64(0xD1342543DE82EF95) + step * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
