"""The corpus stage: text in, token ids out, whole documents held out."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fretsaw.chat.format import chat_format
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint.folder import check_tokenizer, read_config
from fretsaw.corpus.documents import Writer, without_format, writer
from fretsaw.corpus.mixture import (
    choose_heldout,
    choose_sample,
    fingerprint,
    interleaved,
    shuffled,
    spread,
)
from fretsaw.corpus.own_text import sampled_texts
from fretsaw.corpus.sample import read_sample
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.corpus.sources import documents_of, num_characters, source_names, what_is_asked
from fretsaw.corpus.spool import Spool
from fretsaw.data import loader, world
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.stage.whole import write_json

PARTS = ("train", "heldout")


def build(settings: CorpusSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write `train.npy`, `heldout.npy`, which source each came of, and the tokenizer's files."""
    names = source_names(settings, inputs)
    weights = settings.weights or (1.0,) * len(names)
    if len(weights) != len(names):
        raise ValueError(f"weights: {len(weights)} for {len(names)} sources; give one for each")
    if "parent" in inputs:
        tokenizer = Tokenizer.from_folder(inputs["parent"])
        check_tokenizer(tokenizer, read_config(inputs["parent"]))
        writes = writer(tokenizer, chat_format(inputs["parent"], tokenizer))
    else:
        tokenizer = Tokenizer.train(
            _first_texts(settings, inputs, weights, run), settings.vocab_size
        )
        writes = writer(tokenizer, None)
    tokenizer.save(run.folder)
    if settings.source == "world":
        return _generated(settings, writes, run)

    wanted = settings.max_tokens + settings.heldout_tokens
    with Spool(run.folder) as spool:
        if settings.source == "files":
            sources = [
                partial(documents_of, str(inputs[name]), settings, writes.format) for name in names
            ]
            read_sample(spool, sources, weights, wanted, writes, run)
        else:
            for print_, ids in _streamed(settings, inputs, writes, wanted, run):
                spool.add(0, print_, ids)
                if spool.num_tokens >= wanted:
                    break
        table = [
            {"name": name, "weight": weight} for name, weight in zip(names, weights, strict=True)
        ]
        _write_parts(settings, spool, tokenizer.vocab_size, table, run)
    write_json(run.folder / loader.SOURCES, table)
    for line in shown(table, inputs):
        say(line)
    return {
        **{f"{part}_tokens": sum(row[part]["tokens"] for row in table) for part in PARTS},
        "vocab_size": tokenizer.vocab_size,
        "sources": table,
    }


def _streamed(
    settings: CorpusSettings,
    inputs: Mapping[str, Path],
    writes: Writer,
    wanted: int,
    run: StageRun,
) -> Iterator[tuple[int, list[int]]]:
    """Yield (fingerprint, token ids) of what has no end that is worth waiting for."""
    if settings.source == "self":
        for ids in sampled_texts(settings, inputs["parent"], writes, wanted, run):
            yield fingerprint(writes.tokenizer.decode(ids)), ids
        return
    documents = documents_of(settings.dataset, settings, writes.format)
    seed = f"corpus {run.seed} 0"
    for one in shuffled(documents, settings.shuffle_documents, seed):
        yield fingerprint(what_is_asked(one)), writes.token_ids(one)


def _write_parts(
    settings: CorpusSettings,
    spool: Spool,
    vocab_size: int,
    table: list[dict[str, Any]],
    run: StageRun,
) -> None:
    """Write both parts, and add to the table what each source gave to them."""
    if not spool.num_tokens:
        raise ValueError("data: no documents, so no tokens; give a source with text in it")
    wanted, weights = settings.max_tokens + settings.heldout_tokens, [r["weight"] for r in table]
    every = spool.prints, spool.sizes, spool.sources
    chosen = np.flatnonzero(choose_sample(*every, weights, wanted, run.seed))
    prints, sizes, sources = (of_all[chosen] for of_all in every)
    is_heldout = choose_heldout(prints, sizes, sources, settings.heldout_tokens)
    _check_parts(sizes, is_heldout, settings.seq_len)
    limits = {"train": settings.max_tokens, "heldout": settings.heldout_tokens}
    for number, part in enumerate(PARTS):
        own = np.flatnonzero(is_heldout == (part == "heldout"))
        order = chosen[own[spread(sizes[own], sources[own], (run.seed, number))]].tolist()
        written = spool.write(run.folder / f"{part}.npy", order, limits[part], vocab_size)
        of = spool.sources[[document for document, _ in written]]
        taken = np.array([size for _, size in written])
        for source, row in enumerate(table):
            tokens = int(taken[of == source].sum())
            row[part] = {
                "documents": int((of == source).sum()),
                "tokens": tokens,
                "share": tokens / int(taken.sum()),
            }
        if part == "heldout":
            np.save(run.folder / loader.HELDOUT_SOURCES, np.repeat(of, taken).astype(np.uint16))


def _first_texts(
    settings: CorpusSettings, inputs: Mapping[str, Path], weights: Sequence[float], run: StageRun
) -> Iterator[str]:
    """Yield what a tokenizer is trained on: the first documents, the sources by their weights."""
    if settings.source == "world":
        streams = [iter(world.documents(run.seed, "train", None))]
    else:
        names = source_names(settings, inputs)
        streams = [
            shuffled(
                documents_of(str(inputs.get(name, name)), settings, None),
                settings.shuffle_documents,
                f"corpus {run.seed} {number}",
            )
            for number, name in enumerate(names)
        ]
    texts = interleaved(streams, weights, num_characters)
    for _, one in islice(texts, settings.tokenizer_documents):
        if not isinstance(one, str):
            raise without_format(one)
        yield one


def _generated(settings: CorpusSettings, writes: Writer, run: StageRun) -> dict[str, Any]:
    """Write generated text, whose two parts differ by content."""
    metrics: dict[str, Any] = {}
    limits: dict[world.Split, int] = {
        "train": settings.max_tokens,
        "heldout": settings.heldout_tokens,
    }
    for part, limit in limits.items():
        documents = world.documents(run.seed, part, None)
        ids = loader.tokenize(map(writes.token_ids, documents), limit)
        loader.write_tokens(run.folder / f"{part}.npy", ids, writes.tokenizer.vocab_size)
        metrics[f"{part}_tokens"] = len(ids)
    return metrics | {"vocab_size": writes.tokenizer.vocab_size}


# --- what is told ---------------------------------------------------------------------------------


def _check_parts(sizes: np.ndarray, is_heldout: np.ndarray, seq_len: int) -> None:
    held, kept = int(sizes[is_heldout].sum()), int(sizes[~is_heldout].sum())
    if min(held, kept) <= seq_len:
        raise ValueError(
            f"data: {len(sizes)} documents of {held + kept} tokens leave {held} held out and "
            f"{kept} to train on, but one row of seq_len {seq_len} needs {seq_len + 1}; give more "
            "text or more documents, or lower seq_len"
        )


def shown(table: Sequence[Mapping[str, Any]], inputs: Mapping[str, Path]) -> Iterator[str]:
    """Yield the lines of the table: what each source gave to each part, files by their names."""
    names = [inputs[row["name"]].name if row["name"] in inputs else row["name"] for row in table]
    width = max(len("source"), *map(len, names))
    heads = "  ".join(f"{part + ' documents':>17} {'tokens':>11}  share" for part in PARTS)
    yield f"{'source':{width}}  weight  {heads}"
    for name, row in zip(names, table, strict=True):
        cells = "  ".join(
            f"{row[part]['documents']:17,} {row[part]['tokens']:11,}  {row[part]['share']:5.1%}"
            for part in PARTS
        )
        yield f"{name:{width}}  {row['weight']:6g}  {cells}"
