"""Text that the parent itself samples at temperature 1: what it was trained on, as it tells it.

A chat model writes a user's turn first, then answers it; another begins as its texts begin.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fretsaw.chat.format import text_ends
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.corpus.documents import Writer, turn_frame
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Request, RequestFailed
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say

MOST_A_BATCH = 128
LEAST_A_BATCH = 16  # where all of so many fail, the model does


def sampled_texts(
    settings: CorpusSettings, parent: Path, writes: Writer, wanted: int, run: StageRun
) -> Iterator[list[int]]:
    """Yield sampled texts until they have `wanted` tokens.

    One that fails is left out; raises `RequestFailed` where all of a batch do.
    """
    decoder = checkpoint.load(parent, device=run.device)
    engine, format = Engine(decoder, max_batch=MOST_A_BATCH), writes.format
    start = writes.begin or writes.end  # where nothing begins a text, it follows another's end
    frames = [turn_frame(format, mode) for mode in format.modes] if format else [(start, ())]
    if not all(before for before, _ in frames):
        raise ValueError(f"{parent}: names no token to start sampling from; give --data FILES")
    stop = text_ends(writes.tokenizer, format)
    around = max(len(before) + len(after) for before, after in frames)
    length = min(settings.sample_length, decoder.config.max_position_embeddings - 1 - around)
    if length < 1 + bool(format):
        raise ValueError(f"{parent}: its context has no room for a text; give --data FILES")
    run.progress.start("sampling", wanted, unit="token")
    num_tokens = num_samples = 0
    while num_tokens < wanted:
        missing = (wanted - num_tokens) // (around + length) + 1
        batch = min(max(missing, LEAST_A_BATCH), MOST_A_BATCH)
        seed = run.seed * 1_000_003 + num_samples
        own = [frames[(num_samples + i) % len(frames)] for i in range(batch)]
        num_samples += batch
        begun = [before for before, _ in own]
        if format:
            asked = _continued(engine, begun, length // 2, seed, stop)
            kept = [i for i, one in enumerate(asked) if one is not None]
            begun = [(*own[i][0], *_bare(asked[i] or (), stop), *own[i][1]) for i in kept]
            length_left = length - length // 2
        else:
            length_left = length
        sampled = _continued(engine, begun, length_left, seed + (1 << 40 if format else 0), stop)
        for before, text in zip(begun, sampled, strict=True):
            if text is None:
                continue
            ids = [*before, *(text if format else _bare(text, stop)), *writes.end]
            if writes.end and ids[-2:-1] == list(writes.end):
                ids.pop()
            num_tokens += len(ids)
            yield ids
        run.step(min(num_tokens, wanted), row=False)


def _continued(
    engine: Engine,
    begun: Sequence[tuple[int, ...]],
    length: int,
    seed: int,
    stop: tuple[int, ...],
) -> list[tuple[int, ...] | None]:
    """Return what the model goes on with, its end included; None for one that failed."""
    sampling = Sampling(max_tokens=length, temperature=1.0)
    requests = [
        Request(tuple(one), replace(sampling, seed=seed + i), stop) for i, one in enumerate(begun)
    ]
    texts: list[list[int]] = [[] for _ in requests]
    failed: dict[int, str] = {}
    for event in engine.generate(requests):
        if event.error is not None:
            failed[event.request] = event.error
        if event.token_id is not None:
            texts[event.request].append(event.token_id)
    if failed:
        told = f"corpus: {len(failed)} of {len(texts)} texts failed: {min(failed.values())}"
        if len(failed) == len(texts):
            raise RequestFailed(told)
        say(f"{told}; they are left out")
    return [None if index in failed else tuple(text) for index, text in enumerate(texts)]


def _bare(text: Sequence[int], stop: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(text[:-1] if text and text[-1] in stop else text)
