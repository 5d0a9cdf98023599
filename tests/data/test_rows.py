"""Files of rows: three forms, and every fault told with its file and its place in it."""

import json
import random
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fretsaw.data.rows import read_objects

ROW = b'{"text": "good"}\n'


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        list(read_objects(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (rb'{"text": "a \ud83d b"}', "line 2: text holds half of a surrogate pair"),
        (rb'{"text": "a", "x": {"\udc00": 1}}', r"line 2: x.'\udc00' holds half"),
        (b"[" * 100_000, "line 2: nested too deeply"),
        (b'{"n": ' + b"9" * 5000 + b"}", "line 2: a number of 5000 digits"),
        (b'{"n": NaN}', "line 2: NaN is no JSON number"),
        (b'{"text": "a", "text": "b"}', "line 2: the key 'text' stands twice"),
        (b'{"text": "a\0"}', "line 2: byte 28 is NUL"),
        (b'{"text": "\xff"}', "line 2: byte 27 is not UTF-8"),
        (b'[{"text": "a"}]', "line 2: list, not an object; write one object a line"),
        (b"[", "or name a file that is one list .json"),
    ],
)
def test_a_line_is_refused_by_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW + line + b"\n")
    refused(path, message)


def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + ROW.replace(b"\n", b"\r\n\r\n") + ROW.strip())
    found = [(where.rpartition(", ")[2], row) for where, row in read_objects(path)]
    assert found == [("line 1", {"text": "good"}), ("line 3", {"text": "good"})]


def test_a_json_file_is_one_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": 1}, {"a": 2}], indent=1))
    assert [row for _, row in read_objects(path)] == [{"a": 1}, {"a": 2}]
    for text, message in {
        '[{"a": 1}, 3]': "a.json, row 2: int, not an object",
        '{"a": 1}': "a.json: dict, not a list; write one list of objects",
        '{"a": 1}\n{"a": 2}': "a.json: not JSON (Extra data, line 2, column 1)",
        "[]": "a.json: an empty list",
    }.items():
        path.write_text(text)
        refused(path, message)


PIECES = st.sampled_from(
    [
        *(b'{"a": 1}', b"\n", b"\r\n", b"[", b"]", b"\xef\xbb\xbf", b"\xff", b"\0", b'"\\ud83d"'),
        *(b'{"a": "', b'"}', b"\xc3\xa9", b"\xc3", b"NaN", b"1e999", b"PAR1", b"\x1f\x8b", b" "),
    ]
)


@given(st.lists(PIECES | st.binary(max_size=3), max_size=9).map(b"".join))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_bytes_are_rows_or_one_sentence_with_the_file(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        for name in ("a.jsonl", "a.json", "a.parquet"):
            fault = fault_of(Path(folder) / name, content)
            assert fault is None or fault.startswith(str(Path(folder) / name))


# --- parquet --------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = random.Random(0)
    texts = [f"text {i} {rng.random()}" for i in range(2000)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=500)
    return path


def test_a_damaged_page_is_told_by_its_row_group(table: Path) -> None:
    raw = bytearray(table.read_bytes())
    meta = pyarrow.parquet.ParquetFile(table).metadata.row_group(2).column(0)
    raw[meta.data_page_offset : meta.data_page_offset + 300] = b"\xff" * 300
    table.write_bytes(raw)
    rows = read_objects(table)
    assert [next(rows)[1]["text"][:7] for _ in range(1000)][-1] == "text 99"
    with pytest.raises(ValueError, match=r"a\.parquet, row group 3 of 4: .*; the file is damaged"):
        next(rows)


def fault_of(path: Path, content: bytes) -> str | None:
    path.write_bytes(content)
    try:
        list(read_objects(path))
    except ValueError as error:
        return str(error)
    return None


def test_any_damage_is_one_sentence_with_the_file(table: Path) -> None:
    raw, rng = table.read_bytes(), random.Random(1)
    damaged = [raw[:size] for size in (1, 3, 4, 100, len(raw) // 2, len(raw) - 1)]
    for _ in range(60):
        flipped = bytearray(raw)
        for _ in range(rng.choice([1, 20])):
            flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    told = [text for content in damaged if (text := fault_of(table, content)) is not None]
    assert len(told) > 20
    assert all(text.startswith(str(table)) and "\n" not in text for text in told)


def test_a_value_that_cannot_be_read_is_told_by_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    ends = pyarrow.py_buffer(np.array([0, 1, 2, 3], dtype="int32"))
    raw = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, [None, ends, pyarrow.py_buffer(b"a\xffb")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": raw}), path)
    refused(path, "a.parquet, row 2: 'text' is not UTF-8")
    times = pyarrow.array([1, 2**62], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "at": times}), path)
    refused(path, "a.parquet, row 2: 'at' (timestamp[us]) cannot be read")
    assert [row for _, row in read_objects(path, column="text")] == [{"text": "a"}, {"text": "b"}]
