"""Documents of several sources -> one order in which every beginning is a sample of the whole.

Both orders depend on the seed alone. Sizes are whatever the caller counts: characters or tokens.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer

from fretsaw.engine.draws import uniform

T = TypeVar("T")
HELDOUT_SHARE = 0.1  # of a source's tokens, at most
_NOT_WORDS = re.compile(r"[\W_]+")


def shuffled(items: Iterator[T], num_held: int, seed: str) -> Iterator[T]:
    """Yield the items in random order, with no more than `num_held` of them in memory."""
    draw, held = random.Random(seed), []
    for item in items:
        if len(held) < num_held:
            held.append(item)
            continue
        at = draw.randrange(num_held)
        yield held[at]
        held[at] = item
    draw.shuffle(held)
    yield from held


def interleaved(
    streams: Sequence[Iterator[T]], weights: Sequence[float], size: Callable[[T], int]
) -> Iterator[tuple[int, T]]:
    """Yield (stream, item), next from the stream that has given least for its weight.

    One that has run out leaves its share to the others.
    """
    given = dict.fromkeys(range(len(streams)), 0.0)
    while given:
        number = min(given, key=lambda n: (given[n] / weights[n], n))
        item = next(streams[number], None)
        if item is None:
            del given[number]
            continue
        given[number] += size(item)
        yield number, item


def fingerprint(text: str) -> int:
    """Return 63 bits of a text's words: letter case, white space and punctuation don't count."""
    words = _NOT_WORDS.sub(" ", text.casefold()).strip() or text
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest()) >> 1


def fair_shares(
    sizes: Sequence[float] | np.ndarray, weights: Sequence[float], wanted: float
) -> Float[np.ndarray, " sources"]:
    """Return how much of each source is taken: `wanted` together, by weight, none beyond its size.

    What a small source leaves goes to the others.
    """
    have, weight = np.asarray(sizes, dtype=float), np.asarray(weights, dtype=float)
    taken, is_open, left = np.zeros(len(have)), have > 0, float(wanted)
    while is_open.any():
        offered = left * weight / weight[is_open].sum()
        is_short = is_open & (have <= offered)
        if not is_short.any():
            taken[is_open] = offered[is_open]
            break
        taken[is_short] = have[is_short]
        left -= have[is_short].sum()
        is_open &= ~is_short
    return taken


def places(prints: Int64[np.ndarray, " documents"], seed: int) -> Float[np.ndarray, " documents"]:
    """Return where in [0, 1) documents of these fingerprints stand, at random by the seed."""
    return uniform(prints.astype(np.uint64), seed)


def choose_sample(
    prints: Int64[np.ndarray, " documents"],
    sizes: Integer[np.ndarray, " documents"],
    sources: Integer[np.ndarray, " documents"],
    weights: Sequence[float],
    wanted: int,
    seed: int,
) -> Bool[np.ndarray, " documents"]:
    """Return which documents are taken: of each source those of the lowest places, by weight.

    They have `wanted` tokens together and what their last documents have beyond, or all there are.
    """
    totals = np.bincount(sources, weights=sizes, minlength=len(weights))
    at, chosen = places(prints, seed), np.zeros(len(sizes), dtype=bool)
    for source, share in enumerate(fair_shares(totals, weights, wanted)):
        own = np.flatnonzero(sources == source)
        own = own[at[own].argsort(kind="stable")]
        before = sizes[own].cumsum() - sizes[own]
        chosen[own[before < share]] = True
    return chosen


def choose_heldout(
    prints: Integer[np.ndarray, " documents"],
    sizes: Integer[np.ndarray, " documents"],
    sources: Integer[np.ndarray, " documents"],
    num_tokens: int,
) -> Bool[np.ndarray, " documents"]:
    """Return which documents are held out: of every source its share, at most a tenth.

    They are those of the lowest fingerprints that fit, and whatever has one of these fingerprints.
    A source with two texts or more holds out one at least: its shortest, where none fits.
    """
    chosen: set[int] = set()
    share = min(HELDOUT_SHARE, num_tokens / sizes.sum())
    for source in np.unique(sources):
        own = np.flatnonzero(sources == source)
        texts, inverse = np.unique(prints[own], return_inverse=True)
        totals = np.bincount(inverse, weights=sizes[own])
        room, fitting = share * totals.sum(), []
        for text, total in zip(texts.tolist(), totals.tolist(), strict=True):
            if total <= room:
                room -= total
                fitting.append(text)
        if not fitting and len(texts) > 1:
            fitting = [int(texts[totals.argmin()])]
        chosen.update(fitting)
    return np.isin(prints, np.fromiter(chosen, dtype=prints.dtype))


def spread(
    sizes: Integer[np.ndarray, " documents"],
    sources: Integer[np.ndarray, " documents"],
    seed: Sequence[int],
) -> list[int]:
    """Return an order of documents: each source's at random, its tokens spread over the whole."""
    numbers = np.unique(sources)
    orders, totals = [], []
    for number in numbers:
        own = np.flatnonzero(sources == number)
        totals.append(float(sizes[own].sum()))
        orders.append(iter(np.random.default_rng([*seed, int(number)]).permutation(own).tolist()))
    return [item for _, item in interleaved(orders, totals, lambda item: int(sizes[item]))]
