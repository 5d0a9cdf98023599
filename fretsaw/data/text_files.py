"""A text file of the user's -> characters; where it is no UTF-8 text, its line and byte are said.

A byte order mark at the beginning is passed over, and lines end at a line feed, with or without a
carriage return before it. A NUL byte is no text: it comes of UTF-16 and of files cut by a crash.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path

CHUNK_BYTES = 1 << 20
_BOM = "\ufeff"
_FORMATS = {  # first bytes -> what the file is, and what to do about it
    b"\xff\xfe": "it looks like UTF-16; convert the file to UTF-8",
    b"\xfe\xff": "it looks like UTF-16; convert the file to UTF-8",
    b"\x1f\x8b": "it is packed by gzip; unpack it first",
    b"\x28\xb5\x2f\xfd": "it is packed by zstd; unpack it first",
    b"\xfd7zXZ": "it is packed by xz; unpack it first",
    b"BZh": "it is packed by bzip2; unpack it first",
    b"PK\x03\x04": "it is a zip archive; unpack it first",
    b"PAR1": "it is a parquet file; name it .parquet",
}


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, text) of every line, its end taken off; `where` is for messages."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, offset + error.start) from None
            if "\0" in text:
                raise _nul(path, number, offset + raw.index(b"\0"))
            offset += len(raw)
            text = text.removesuffix("\n").removesuffix("\r")
            yield f"{path}, line {number}", text.removeprefix(_BOM) if number == 1 else text


def read_chunks(path: Path) -> Iterator[str]:
    """Yield the text in pieces of about CHUNK_BYTES, no character cut in two."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1  # of what has been decoded
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            pending = decoder.getstate()[0]  # bytes of a character cut by the last chunk
            raw = pending + chunk
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += raw.count(b"\n", 0, error.start)
                raise _not_utf8(path, line, offset + error.start) from None
            if "\0" in text:
                at = raw.index(b"\0")
                raise _nul(path, line + raw.count(b"\n", 0, at), offset + at)
            yield text.removeprefix(_BOM) if offset == 0 else text
            if not chunk:
                return
            offset += len(raw) - len(decoder.getstate()[0])
            line += text.count("\n")


def _not_utf8(path: Path, line: int, offset: int) -> ValueError:
    return ValueError(f"{path}, line {line}: byte {offset} is not UTF-8; {_remedy(path)}")


def _nul(path: Path, line: int, offset: int) -> ValueError:
    return ValueError(
        f"{path}, line {line}: byte {offset} is NUL, which is no text; {_remedy(path)}"
    )


def _remedy(path: Path) -> str:
    with path.open("rb") as file:
        begins = file.read(8)
    if begins[1::2] == b"\0\0\0\0":
        return _FORMATS[b"\xff\xfe"]
    told = (remedy for magic, remedy in _FORMATS.items() if begins.startswith(magic))
    return next(told, "convert the file to UTF-8")
