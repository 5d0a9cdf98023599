"""The sources of a corpus: what they are called, and their documents as they are read."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fretsaw.chat.renderer import ChatFormat
from fretsaw.corpus.documents import plain_record
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.data.records import Record
from fretsaw.data.sources import read_documents

LEAST_PART = 16_384  # characters of a part of a file that is one long text


def source_names(settings: CorpusSettings, inputs: Mapping[str, Path]) -> list[str]:
    """Return what the sources are called: files as inputs are, whatever their paths."""
    if settings.source == "self" and "parent" not in inputs:
        raise ValueError("corpus: source self samples text from a checkpoint; give it as --parent")
    if settings.source != "files":
        return [settings.dataset or settings.source]
    files = [name for name in inputs if name.startswith("data")]
    if not files:
        raise ValueError("corpus: no text; give --data FILES")
    return sorted(files, key=lambda name: (len(name), name))


def documents_of(
    source: str, settings: CorpusSettings, format: ChatFormat | None
) -> Iterator[str | Record]:
    """Yield the documents of a file or a Hub dataset, as a model with this chat format reads them.

    A file that is one text comes in parts of 16,384 characters or eight rows, whichever is more.
    """
    toggle = format.toggle if format else "v1"
    most = max(LEAST_PART, 8 * settings.seq_len)
    documents = _parts(read_documents([source], toggle), most, source)
    if format is not None and toggle == "none" and not format.opening("on"):
        documents = _untagged(documents)
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


def _parts(documents: Iterator[str | Record], most: int, file: str) -> Iterator[str | Record]:
    """Cut the text of a file that is one document, at its paragraphs; others pass as they are."""
    first, second = next(documents, None), next(documents, None)
    if first is not None and second is None and isinstance(first, str) and file.endswith(".txt"):
        yield from cut(first, most)
        return
    yield from (one for one in (first, second) if one is not None)
    yield from documents


def _untagged(documents: Iterable[str | Record]) -> Iterator[str | Record]:
    for one in documents:
        plain = plain_record(one) if isinstance(one, Record) else one
        if plain is not None:
            yield plain


def what_is_asked(document: str | Record) -> str:
    """Return a text, or the user's turns: two answers to one question belong on one side."""
    if isinstance(document, str):
        return document
    return "\n\n".join(one.content for one in document.messages if one.role == "user")


def num_characters(document: str | Record) -> int:
    """Return how long a document is; a turn counts one at least, for what a chat format adds."""
    if isinstance(document, str):
        return len(document)
    return sum(1 + len(one.content) + len(one.reasoning or "") for one in document.messages)
