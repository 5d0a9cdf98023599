"""Files of our own: what a disk or a kill made of them is one sentence with path and remedy."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fretsaw.stage.own_file import Damaged, append_row, mismatch, read_json, read_jsonl

SHAPE = {"name": str, "rows": [{"step": int}], "seconds": (int, float)}
GOOD = {"name": "a", "rows": [{"step": 1}], "seconds": 2}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["name", "rows"]), inner),
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"[]", "it is a list, not an object"),
        (b"null", "it is null, not an object"),
        (b'{"name": "a", "rows": [', "not JSON"),
        (b'{"name": "\xff\xfe"}', "byte 10 is not UTF-8"),
        (b"\x00" * 64, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (json.dumps({**GOOD, "name": 3}).encode(), "'name' is a whole number, not text"),
        (json.dumps({**GOOD, "seconds": True}).encode(), "'seconds' is true or false, not a"),
        (json.dumps({"name": "a", "rows": []}).encode(), "it has no key 'seconds'"),
        (json.dumps({**GOOD, "rows": [{"step": 1}, 7]}).encode(), "item 1 of 'rows' is a whole"),
        (json.dumps({**GOOD, "rows": [{"step": None}]}).encode(), "'step' is null, not a whole"),
    ],
)
def test_each_damage_is_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "own.json"
    path.write_bytes(content)
    with pytest.raises(Damaged) as raised:
        read_json(path, SHAPE, remedy="make it again")
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    assert text.endswith("; make it again")
    assert said in text or ("nested" in text and said == "not JSON")
    assert "\n" not in text


def test_what_is_absent_or_a_folder_is_told(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "absent", "not there"), (tmp_path, "a folder")):
        with pytest.raises(Damaged, match=said):
            read_json(path)


def test_a_digest_tells_what_still_reads(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(GOOD))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_json(path, SHAPE, digest=digest) == GOOD
    path.write_text(json.dumps({**GOOD, "seconds": 3}))
    with pytest.raises(Damaged, match="changed since it was made"):
        read_json(path, SHAPE, digest=digest)


def test_rows_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_jsonl(path) == []
    path.write_bytes(b'{"step": 1}\n[]\n\xff\n{"step": null}\n{"step": 2}\n{"ste')
    assert read_jsonl(path, {"step": int}) == [{"step": 1}, {"step": 2}]


@given(ANY_JSON)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_any_value_fits_or_is_told(value: object) -> None:
    fault = mismatch(value, SHAPE)
    assert fault is None or isinstance(fault, str)


def test_a_row_is_added_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_row(path, {"step": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2')  # cut by a kill
    append_row(path, {"step": 3})
    assert read_jsonl(path, {"step": int}) == [{"step": 1}, {"step": 3}]
    append_row(path, {"step": 4})
    assert read_jsonl(path, {"step": int})[-1] == {"step": 4}
