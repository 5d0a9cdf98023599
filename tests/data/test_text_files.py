"""A user's text: what is no UTF-8 is told by line and byte, however the file is read."""

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from fretsaw.data import text_files
from fretsaw.data.text_files import read_chunks, read_lines

BAD = [
    (b"one\ntwo \xff", r"line 2: byte 8 is not UTF-8; convert the file to UTF-8"),
    ("one\ntwo é".encode("latin-1"), "line 2: byte 8 is not UTF-8"),
    (b"one\r\ntwo\r\n\xe3\x81", "line 3: byte 10 is not UTF-8"),
    (b"one\n\ntwo\0", "line 3: byte 8 is NUL, which is no text"),
    ("one\ntwo".encode("utf-16"), "line 1: byte 0 is not UTF-8; it looks like UTF-16"),
    ("one\ntwo".encode("utf-16-le"), "line 1: byte 1 is NUL, .* it looks like UTF-16"),
    (gzip.compress(b"one", mtime=0), "packed by gzip; unpack it first"),
    (bz2.compress(b"one"), "packed by bzip2"),
    (lzma.compress(b"one"), "packed by xz"),
]


@pytest.mark.parametrize(("raw", "message"), BAD)
@pytest.mark.parametrize("chunk_bytes", [1, 3, 100])
def test_what_is_no_text_is_told_by_line_and_byte(
    tmp_path: Path, monkeypatch, raw: bytes, message: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(text_files, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    for read in (read_lines, read_chunks):
        with pytest.raises(ValueError, match=rf"a\.txt, .*{message}"):
            list(read(path))


def test_lines_end_at_a_line_feed_and_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\u2028still one\r\n\n\ufeffthree".encode())
    lines = [text for _, text in read_lines(path)]
    assert lines == ["one\u2028still one", "", "\ufeffthree"]
