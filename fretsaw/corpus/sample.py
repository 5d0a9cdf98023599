"""A sample of sources that may have more text than is wanted, read in bounded memory.

Every source is read twice: to see how much it has, and for what is taken. Whether a document is
taken depends on the seed and its words, not on where it stands, so the end of a file is as likely
as its beginning.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fretsaw.corpus.documents import Writer
from fretsaw.corpus.mixture import fair_shares, fingerprint, places
from fretsaw.corpus.sources import num_characters, what_is_asked
from fretsaw.corpus.spool import Spool
from fretsaw.data.records import Record
from fretsaw.stage.execute import StageRun

NUM_PROBED = 64  # documents of a source that tell how long its text is in tokens
SPARE = 1.2  # as much is read, for the estimate is one
STEP_EVERY = 100  # documents

Source = Callable[[], Iterator[str | Record]]  # reads it from its beginning


def read_sample(
    spool: Spool,
    sources: Sequence[Source],
    weights: Sequence[float],
    wanted: int,
    writes: Writer,
    run: StageRun,
) -> None:
    """Spool `wanted` tokens and some to spare, by weight; all where there are fewer."""
    extents = [_extent(source, writes, run) for source in sources]
    shares = fair_shares([tokens for _, tokens in extents], weights, wanted)
    run.progress.start("tokenising", sum(count for count, _ in extents), unit="document")
    num_passed = 0
    for number, source in enumerate(sources):
        (count, tokens), share, before = extents[number], shares[number], spool.num_tokens
        first, last = 0.0, min(1.0, SPARE * share / max(1.0, tokens))
        while first < last:
            for at, one in enumerate(source()):
                print_ = fingerprint(what_is_asked(one))
                if first <= places(np.array([print_]), run.seed)[0] < last:
                    spool.add(number, print_, writes.token_ids(one))
                if at % STEP_EVERY == 0:
                    run.step(num_passed + at, row=False)
            is_enough = spool.num_tokens - before >= share
            first, last = last, last if is_enough else min(1.0, 2 * last)
        num_passed += count
    run.step(num_passed, row=False)


def _extent(source: Source, writes: Writer, run: StageRun) -> tuple[int, float]:
    """Return how many documents a source has, and about how many tokens.

    A few documents, drawn from all, are tokenised, which gives tokens a character.
    """
    draw, probed = random.Random(f"corpus {run.seed}"), []
    count = characters = 0
    for count, one in enumerate(source(), start=1):
        characters += num_characters(one)
        if len(probed) < NUM_PROBED:
            probed.append(one)
        elif (at := draw.randrange(count)) < NUM_PROBED:
            probed[at] = one
        if count % STEP_EVERY == 0:
            run.check()
    of_probed = sum(map(num_characters, probed))
    tokens = sum(len(writes.token_ids(one)) for one in probed)
    return count, characters * tokens / max(1, of_probed)
