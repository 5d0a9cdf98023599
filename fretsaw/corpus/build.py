"""The corpus stage: text in, token ids out, the end of the text held out."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint.folder import check_tokenizer, read_config
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.data import loader, sources, world
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say

SAMPLES_A_BATCH = 128


def build(settings: CorpusSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write `train.npy`, `heldout.npy` and the tokenizer's files."""
    if "parent" in inputs:
        tokenizer = Tokenizer.from_folder(inputs["parent"])
        check_tokenizer(tokenizer, read_config(inputs["parent"]))
    else:
        sample = islice(_documents(settings, inputs, run), settings.tokenizer_documents)
        tokenizer = Tokenizer.train(sample, settings.vocab_size)
    tokenizer.save(run.folder)
    separator = tokenizer.bos_token_id
    if separator is None:
        separator = next(iter(tokenizer.eos_token_ids), None)
    if separator is None:
        raise ValueError(
            f"{inputs['parent']}: its tokenizer names neither a bos nor an eos token, so documents "
            "cannot be told apart; add one to tokenizer_config.json"
        )

    # A parent's text goes on as it was trained: its own way of ending a document is not known.
    ending = [] if "parent" in inputs else list(tokenizer.eos_token_ids[:1])

    def tokens(documents: Iterator[str], limit: int) -> np.ndarray:
        return loader.tokenize(
            documents, lambda text: tokenizer.encode(text) + ending, separator, limit
        )

    if settings.source == "world":
        train = tokens(world.documents(run.seed, "train", None), settings.max_tokens)
        heldout = tokens(world.documents(run.seed, "heldout", None), settings.heldout_tokens)
    else:
        wanted = settings.max_tokens + settings.heldout_tokens
        stream = (
            _sampled_tokens(settings, inputs["parent"], wanted, run)
            if settings.source == "self"
            else tokens(_documents(settings, inputs, run), wanted)
        )
        num_heldout = min(settings.heldout_tokens, len(stream) // 10)
        train, heldout = np.split(stream, [len(stream) - num_heldout])
        loader.num_windows(heldout, settings.seq_len)  # refuses text that is too short
    loader.write_tokens(run.folder / "train.npy", train, tokenizer.vocab_size)
    loader.write_tokens(run.folder / "heldout.npy", heldout, tokenizer.vocab_size)
    return {
        "train_tokens": len(train),
        "heldout_tokens": len(heldout),
        "vocab_size": tokenizer.vocab_size,
    }


def _documents(
    settings: CorpusSettings, inputs: Mapping[str, Path], run: StageRun
) -> Iterator[str]:
    if settings.source == "world":
        return world.documents(run.seed, "train", None)
    if settings.source == "hub":
        return sources.read_documents([settings.dataset])
    if settings.source == "self":
        raise ValueError("corpus: source self samples text from a checkpoint; give it as --parent")
    names = sorted((name for name in inputs if name.startswith("data")), key=lambda n: (len(n), n))
    files = [str(inputs[name]) for name in names]
    if not files:
        raise ValueError("corpus: no text; give --data FILES")
    return sources.read_documents(files)


def _sampled_tokens(
    settings: CorpusSettings, parent: Path, wanted: int, run: StageRun
) -> np.ndarray:
    """Sample texts from the parent itself at temperature 1, each from a bare bos.

    One that fails is left out; raises `RequestFailed` where all of a batch do.
    """
    from fretsaw.checkpoint import folder as checkpoint
    from fretsaw.engine.engine import Engine
    from fretsaw.engine.sampling import Sampling
    from fretsaw.engine.sequence import Request, RequestFailed

    decoder = checkpoint.load(parent, device=run.device)
    bos = decoder.config.bos_token_id
    if bos is None:
        raise ValueError(f"{parent}: names no bos token to start sampling from; give --data FILES")
    engine = Engine(decoder, max_batch=SAMPLES_A_BATCH)
    stop = decoder.config.eos_token_ids
    length = min(settings.sample_length, decoder.config.max_position_embeddings - 1)
    run.progress.start("sampling", wanted, unit="token")
    sampling = Sampling(max_tokens=length, temperature=1.0)
    sampled: list[list[int]] = []
    num_tokens = 0
    for batch in count():
        if num_tokens >= wanted:
            break
        first = run.seed * 1_000_003 + batch * SAMPLES_A_BATCH
        requests = [
            Request((bos,), replace(sampling, seed=first + i), stop) for i in range(SAMPLES_A_BATCH)
        ]
        texts: list[list[int]] = [[bos] for _ in requests]
        failed: dict[int, str] = {}
        for event in engine.generate(requests):
            if event.error is not None:
                failed[event.request] = event.error
            if event.token_id is not None and event.token_id not in stop:
                texts[event.request].append(event.token_id)
        if failed:
            told = f"corpus: {len(failed)} of {len(texts)} texts failed: {min(failed.values())}"
            if len(failed) == len(texts):
                raise RequestFailed(told)
            say(f"{told}; they are left out")
        texts = [text for index, text in enumerate(texts) if index not in failed]
        sampled += texts
        num_tokens += sum(map(len, texts))
        run.step(min(num_tokens, wanted), row=False)
    return np.fromiter(islice(chain.from_iterable(sampled), wanted), dtype=np.int64)
