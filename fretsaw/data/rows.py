"""A file of rows -> objects: a .jsonl has one a line, a .json is a list of them, or .parquet.

Every row is checked as `parse_json` says, and what is wrong is told with its file and its line (or
its place in the list, or its row).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fretsaw.data.parquet import read_parquet
from fretsaw.data.text_files import read_chunks, read_lines
from fretsaw.stage.json_text import NotJson, parse_json

Row = Mapping[str, Any]
EXAMPLE = '{"text": "..."}'


def read_objects(path: Path, column: str | None = None) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) of a .jsonl, .json or .parquet file; `where` is for messages.

    With a `column`, no more than that is read of a parquet file.
    """
    if not path.is_file():
        what = "a folder; name the files in it" if path.is_dir() else "no such file; check the path"
        raise ValueError(f"{path}: {what}")
    match path.suffix.lower():
        case ".jsonl":
            yield from _lines(path)
        case ".json":
            yield from _list(path)
        case ".parquet":
            yield from read_parquet(path, column)
        case other:
            raise ValueError(f"{path}: {other!r} files have no rows; give .jsonl or .parquet")


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    is_blank = True
    for where, text in read_lines(path):
        if not text.strip():
            continue
        is_blank = False
        remedy = f"write one object a line, such as {EXAMPLE}"
        if text.lstrip().startswith("["):
            remedy += ", or name a file that is one list .json"
        yield where, _object(_parse(text, where, remedy), where, remedy)
    if is_blank:
        raise ValueError(f"{path}: only blank lines; give a file with one JSON object a line")


def _list(path: Path) -> Iterator[tuple[str, Row]]:
    remedy = f"write one list of objects, such as [{EXAMPLE}], or one a line and name it .jsonl"
    rows = _parse("".join(read_chunks(path)), str(path), remedy)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: {type(rows).__name__}, not a list; {remedy}")
    if not rows:
        raise ValueError(f"{path}: an empty list; give one with rows in it")
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        yield where, _object(row, where, remedy)


def _parse(text: str, where: str, remedy: str) -> Any:
    try:
        return parse_json(text.strip())
    except NotJson as error:
        raise ValueError(f"{where}: {error}; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _object(row: Any, where: str, remedy: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {type(row).__name__}, not an object; {remedy}")
    return row
