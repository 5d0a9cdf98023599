"""What the user names with `--data` -> an iterator of documents.

A source is a file (.txt, .jsonl, .json, .parquet) or a Hub dataset `owner/name`, which is streamed:
no more of it is fetched than is asked for. A .txt file is one document, unless `<|endoftext|>`
occurs in it, which then separates documents; white space around them is dropped, other text is
handed on as it stands. A row without `text` is a conversation, of one of the kinds of records.py.
`self` (text sampled from the parent) is no source; the caller answers it.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fretsaw.chat.toggle import Toggle
from fretsaw.data.records import KINDS, Record, records_of
from fretsaw.data.rows import read_objects
from fretsaw.data.text_files import read_chunks

SEPARATOR = "<|endoftext|>"

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_NUMBER = re.compile(r"-?\d*\.?\d+")
_FILE_SUFFIXES = {".txt", ".jsonl", ".parquet", ".json", ".csv", ".tsv", ".md", ".gz", ".zst"}


def split_weights(names: Sequence[str]) -> tuple[list[str], tuple[float, ...]]:
    """Return sources and their weights, of which no more than the relations count.

    No weights come back where all are alike. Raises as `read_weights` does.
    """
    sources, weights = read_weights(names)
    return sources, weights if len(set(weights)) > 1 else ()


def read_weights(names: Sequence[str]) -> tuple[list[str], tuple[float, ...]]:
    """Return sources and their weights: `b.jsonl:0.3` has 0.3, one without a number 1.

    Raises ValueError for one that is not above 0.
    """
    sources, weights = [], []
    for name in names:
        source, colon, number = name.rpartition(":")
        if not colon or not source or Path(name).exists() or not _NUMBER.fullmatch(number):
            source, number = name, "1"
        weight = float(number)
        if not 0 < weight < math.inf:
            raise ValueError(f"--data {name}: weight {number}; give a number above 0, or no weight")
        sources.append(source)
        weights.append(weight)
    return sources, tuple(weights)


def read_documents(sources: Sequence[str], toggle: Toggle = "v1") -> Iterator[str | Record]:
    """Yield the documents of all sources, in order, reading no further than is consumed.

    `toggle` is that of the model which conversations are for. Raises ValueError where a source is
    absent, empty, not UTF-8 or of an unknown kind.
    """
    if not sources:
        raise ValueError("data: no source given; name a .txt, .jsonl or .parquet file")
    for source in sources:
        if is_hub_name(source):
            yield from _read_hub(source, toggle)
        else:
            yield from _read_file(Path(source), toggle)


def is_hub_name(source: str) -> bool:
    """Whether a source is a Hub dataset: shaped `owner/name`, not on disk, not named as a file."""
    path = Path(source)
    looks_like_file = path.exists() or path.suffix.lower() in _FILE_SUFFIXES
    return not looks_like_file and _HUB_NAME.fullmatch(source) is not None


def _read_file(path: Path, toggle: Toggle) -> Iterator[str | Record]:
    if path.is_dir():
        raise ValueError(f"{path}: a folder, but data is read from files; name the files in it")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path, or name a Hub dataset owner/name")
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".jsonl", ".json", ".parquet"):
        raise ValueError(
            f"{path}: unknown suffix {path.suffix!r}; data is read from .txt, .jsonl, .json or "
            ".parquet, so convert or rename the file"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: an empty file; give one with text in it")
    yield from _read_txt(path) if suffix == ".txt" else _read_rows(path, toggle)


def _read_txt(path: Path) -> Iterator[str]:
    pieces: list[str] = []  # of the document that is still open
    tail = ""  # may hold the first characters of a separator
    num_documents = 0
    for chunk in read_chunks(path):
        *closed, tail = (tail + chunk).split(SEPARATOR)
        for text in closed:
            document = "".join([*pieces, text]).strip()
            pieces.clear()
            if document:
                num_documents += 1
                yield document
        keep = len(SEPARATOR) - 1
        pieces.append(tail[:-keep])
        tail = tail[-keep:]
    document = "".join([*pieces, tail]).strip()
    if document:
        yield document
    elif num_documents == 0:
        raise ValueError(f"{path}: only blank text; give a file with text in it")


def _read_rows(path: Path, toggle: Toggle) -> Iterator[str | Record]:
    for where, row in read_objects(path, column="text"):
        yield from _row_documents(row, where, toggle)


def _row_documents(row: Mapping[str, Any], where: str, toggle: Toggle) -> Iterator[str | Record]:
    if "text" in row:
        yield _row_text(row, where)
    elif any(all(row.get(field) is not None for field in kind.split(", ")) for kind in KINDS):
        yield from records_of(row, where, toggle)
    else:
        found = ", ".join(map(repr, row)) or "none"
        raise ValueError(
            f"{where}: no 'text' field (found {found}), and no conversation; rename the one with "
            "the text"
        )


def _row_text(row: Mapping[str, Any], where: str) -> str:
    text = row["text"]
    if not isinstance(text, str):
        raise ValueError(f"{where}: 'text' is {type(text).__name__}, not a string; make it one")
    if not text.strip():
        raise ValueError(f"{where}: 'text' is empty; leave the row out")
    return text


def _read_hub(name: str, toggle: Toggle) -> Iterator[str | Record]:
    """Stream the `train` split; rows without text, common there, are passed over."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"{name}: no such file, and streaming a Hub dataset needs `pip install fretsaw[hub]`"
        ) from None
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
    except Exception as error:  # of many libraries; whichever it was, the remedy is the user's
        raise ValueError(
            f"{name}: no such file, and the Hub dataset could not be opened "
            f"({type(error).__name__}: {error}); check the name and the network, or give a file"
        ) from error
    for number, row in enumerate(rows, start=1):
        if row.get("text") != "":
            yield from _row_documents(row, f"{name}, row {number}", toggle)
