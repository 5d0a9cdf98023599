"""The corpus stage: text in, token ids out, whole documents held out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fretsaw.chat.format import chat_format
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint.folder import check_tokenizer, read_config
from fretsaw.corpus.documents import Writer, plain_record, without_format, writer
from fretsaw.corpus.mixture import (
    choose_heldout,
    fingerprint,
    interleaved,
    shuffled,
    spread,
)
from fretsaw.corpus.own_text import sampled_texts
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.corpus.spool import Spool
from fretsaw.data import loader, world
from fretsaw.data.records import Record
from fretsaw.data.sources import read_documents
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.stage.whole import write_json

PARTS = ("train", "heldout")
LEAST_PART = 16_384  # characters of a part of a file that is one long text


def build(settings: CorpusSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write `train.npy`, `heldout.npy`, which source each came of, and the tokenizer's files."""
    names = _source_names(settings, inputs)
    weights = settings.weights or (1.0,) * len(names)
    if len(weights) != len(names):
        raise ValueError(f"weights: {len(weights)} for {len(names)} sources; give one for each")
    if "parent" in inputs:
        tokenizer = Tokenizer.from_folder(inputs["parent"])
        check_tokenizer(tokenizer, read_config(inputs["parent"]))
        writes = writer(tokenizer, chat_format(inputs["parent"], tokenizer))
    else:
        texts = interleaved(_texts(settings, inputs, run, None), weights, _num_characters)
        sample = (_plain_text(one) for _, one in islice(texts, settings.tokenizer_documents))
        tokenizer = Tokenizer.train(sample, settings.vocab_size)
        writes = writer(tokenizer, None)
    tokenizer.save(run.folder)
    if settings.source == "world":
        return _generated(settings, writes, run)

    with Spool(run.folder) as spool:
        wanted = settings.max_tokens + settings.heldout_tokens
        for number, print_, ids in _tokenised(settings, inputs, weights, writes, run):
            spool.add(number, print_, ids)
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


def _tokenised(
    settings: CorpusSettings,
    inputs: Mapping[str, Path],
    weights: Sequence[float],
    writes: Writer,
    run: StageRun,
) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (source, fingerprint, token ids) of every document, the sources by their weights."""
    if settings.source == "self":
        wanted = settings.max_tokens + settings.heldout_tokens
        for ids in sampled_texts(settings, inputs["parent"], writes, wanted, run):
            yield 0, fingerprint(writes.tokenizer.decode(ids)), ids
        return
    streams = [_written(texts, writes) for texts in _texts(settings, inputs, run, writes)]
    for number, (print_, ids) in interleaved(streams, weights, lambda one: len(one[1])):
        yield number, print_, ids


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
    sizes, sources = spool.sizes, spool.sources
    is_heldout = choose_heldout(spool.prints, sizes, sources, settings.heldout_tokens)
    _check_parts(sizes, is_heldout, settings.seq_len)
    limits = {"train": settings.max_tokens, "heldout": settings.heldout_tokens}
    for number, part in enumerate(PARTS):
        own = np.flatnonzero(is_heldout == (part == "heldout"))
        order = own[spread(sizes[own], sources[own], (run.seed, number))].tolist()
        written = spool.write(run.folder / f"{part}.npy", order, limits[part], vocab_size)
        of = sources[[document for document, _ in written]]
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


# --- sources --------------------------------------------------------------------------------------


def _source_names(settings: CorpusSettings, inputs: Mapping[str, Path]) -> list[str]:
    """Return what the sources are called: files as inputs are, whatever their paths."""
    if settings.source == "self" and "parent" not in inputs:
        raise ValueError("corpus: source self samples text from a checkpoint; give it as --parent")
    if settings.source != "files":
        return [settings.dataset or settings.source]
    if not _data(inputs):
        raise ValueError("corpus: no text; give --data FILES")
    return _data(inputs)


def _data(inputs: Mapping[str, Path]) -> list[str]:
    return sorted((name for name in inputs if name.startswith("data")), key=lambda n: (len(n), n))


def _texts(
    settings: CorpusSettings, inputs: Mapping[str, Path], run: StageRun, writes: Writer | None
) -> list[Iterator[str | Record]]:
    """Return each source's documents, shuffled as they are read."""
    if settings.source == "world":
        return [iter(world.documents(run.seed, "train", None))]
    files = (
        [settings.dataset]
        if settings.source == "hub"
        else [str(inputs[one]) for one in _data(inputs)]
    )
    form = writes.format if writes else None
    toggle = form.toggle if form else "v1"
    is_untagged = form is not None and toggle == "none" and not form.opening("on")
    part = max(LEAST_PART, 8 * settings.seq_len)
    streams = []
    for number, file in enumerate(files):
        documents = _parts(read_documents([file], toggle), part, file)
        if is_untagged:
            documents = _untagged(documents)
        seed = f"corpus {run.seed} {number}"
        streams.append(shuffled(documents, settings.shuffle_documents, seed))
    return streams


def _parts(documents: Iterator[str | Record], most: int, file: str) -> Iterator[str | Record]:
    """Cut the text of a file that is one document, at its paragraphs; others pass as they are."""
    first, second = next(documents, None), next(documents, None)
    if first is not None and second is None and isinstance(first, str) and file.endswith(".txt"):
        yield from cut(first, most)
        return
    yield from (one for one in (first, second) if one is not None)
    yield from documents


def cut(text: str, most: int) -> Iterator[str]:
    """Yield parts of at most `most` characters, which end at a paragraph, a line or a word."""
    at = 0
    while at < len(text):
        end = at + most
        if end < len(text):
            places = (text.rfind(mark, at + most // 2, end) for mark in ("\n\n", "\n", " "))
            end = next((place for place in places if place > at), end)
        part = text[at:end].strip()
        if part:
            yield part
        at = end


def _untagged(documents: Iterable[str | Record]) -> Iterator[str | Record]:
    for one in documents:
        plain = plain_record(one) if isinstance(one, Record) else one
        if plain is not None:
            yield plain


def _written(documents: Iterable[str | Record], writes: Writer) -> Iterator[tuple[int, list[int]]]:
    for one in documents:
        ids = writes.token_ids(one)
        yield fingerprint(one if isinstance(one, str) else _asked(one)), ids


def _asked(record: Record) -> str:
    """Return what is asked: two answers to one question belong on one side."""
    return "\n\n".join(one.content for one in record.messages if one.role == "user")


def _plain_text(document: str | Record) -> str:
    if isinstance(document, str):
        return document
    raise without_format(document)


def _num_characters(document: str | Record) -> int:
    return len(_plain_text(document))


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
