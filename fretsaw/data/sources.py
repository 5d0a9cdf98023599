"""What the user names with `--data` -> an iterator of documents.

A source is a file (.txt, .jsonl, .parquet) or a Hub dataset `owner/name`, which is streamed: no
more of it is fetched than is asked for. A .txt file is one document, unless `<|endoftext|>` occurs
in it, which then separates documents; white space around them is dropped, other text is handed on
as it stands. `self` (text sampled from the parent) is no source; the caller answers it.
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SEPARATOR = "<|endoftext|>"
CHUNK_BYTES = 1 << 20

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILE_SUFFIXES = {".txt", ".jsonl", ".parquet", ".json", ".csv", ".tsv", ".md", ".gz", ".zst"}


def read_documents(sources: Sequence[str]) -> Iterator[str]:
    """Yield the documents of all sources, in order, reading no further than is consumed.

    Raises ValueError where a source is absent, empty, not UTF-8 or of an unknown kind.
    """
    if not sources:
        raise ValueError("data: no source given; name a .txt, .jsonl or .parquet file")
    for source in sources:
        if is_hub_name(source):
            yield from _read_hub(source)
        else:
            yield from _read_file(Path(source))


def is_hub_name(source: str) -> bool:
    """Whether a source is a Hub dataset: shaped `owner/name`, not on disk, not named as a file."""
    path = Path(source)
    looks_like_file = path.exists() or path.suffix.lower() in _FILE_SUFFIXES
    return not looks_like_file and _HUB_NAME.fullmatch(source) is not None


def _read_file(path: Path) -> Iterator[str]:
    if path.is_dir():
        raise ValueError(f"{path}: a folder, but data is read from files; name the files in it")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path, or name a Hub dataset owner/name")
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: unknown suffix {path.suffix!r}; data is read from .txt, .jsonl or .parquet, "
            "so convert or rename the file"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: an empty file; give one with text in it")
    yield from reader(path)


def _read_txt(path: Path) -> Iterator[str]:
    pieces: list[str] = []  # of the document that is still open
    tail = ""  # may hold the first characters of a separator
    num_documents = 0
    for chunk in _decoded_chunks(path):
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


def _decoded_chunks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    num_read = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            num_pending = len(decoder.getstate()[0])  # bytes of a character cut by the last chunk
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, num_read - num_pending + error.start) from None
            yield text.removeprefix("\ufeff") if num_read == 0 else text
            if not chunk:
                return
            num_read += len(chunk)


def read_objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where, row) of a .jsonl or .parquet file; `where` is for messages."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path")
    match path.suffix.lower():
        case ".jsonl":
            yield from _jsonl_objects(path)
        case ".parquet":
            yield from _parquet_objects(path)
        case other:
            raise ValueError(f"{path}: {other!r} files have no rows; give .jsonl or .parquet")


def _read_jsonl(path: Path) -> Iterator[str]:
    for where, row in _jsonl_objects(path):
        yield _row_text(row, where)


def _jsonl_objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    offset = num_documents = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start) from None
            offset += len(line)
            if not text.strip():
                continue
            num_documents += 1
            where = f"{path}, line {number}"
            yield where, _parse_row(text, where)
    if num_documents == 0:
        raise ValueError(f"{path}: only blank lines; give a file with one JSON object a line")


def _parse_row(text: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text.strip())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON ({error.msg}, column {error.colno}); "
            'write one object a line, such as {"text": "..."}'
        ) from None
    if not isinstance(row, dict):
        raise ValueError(
            f'{where}: {type(row).__name__}, not an object; write {{"text": "..."}} on each line'
        )
    return row


def _row_text(row: Mapping[str, Any], where: str) -> str:
    if "text" not in row:
        if "messages" in row:
            raise ValueError(
                f"{where}: a conversation ('messages'), which is not read as plain text yet; "
                "give rows with a 'text' field"
            )
        found = ", ".join(map(repr, row)) or "none"
        raise ValueError(f"{where}: no 'text' field (found {found}); rename the one with the text")
    text = row["text"]
    if not isinstance(text, str):
        raise ValueError(f"{where}: 'text' is {type(text).__name__}, not a string; make it one")
    if not text.strip():
        raise ValueError(f"{where}: 'text' is empty; leave the row out")
    return text


def _read_parquet(path: Path) -> Iterator[str]:
    for where, row in _parquet_objects(path, column="text"):
        yield _row_text(row, where)


def _parquet_objects(
    path: Path, column: str | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid:
        raise ValueError(f"{path}: not a parquet file; check how it was written") from None
    with table:
        if table.metadata.num_rows == 0:
            raise ValueError(f"{path}: a table without rows; give one with text in it")
        names = table.schema_arrow.names
        if column is not None and column not in names:
            _row_text(dict.fromkeys(names), str(path))
        number = 0
        for rows in table.iter_batches(columns=None if column is None else [column]):
            for row in rows.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def _read_hub(name: str) -> Iterator[str]:
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
            yield _row_text(row, f"{name}, row {number}")


def _not_utf8(path: Path, offset: int) -> ValueError:
    return ValueError(f"{path}: byte {offset} is not UTF-8; convert the file to UTF-8")
