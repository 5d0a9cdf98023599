"""Reading the user's text: what is accepted, and what each mistake is told."""

import builtins
import re
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest

from fretsaw.data import sources, text_files
from fretsaw.data.sources import read_documents


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(*names):
    return list(read_documents(names))


def refused(message, *names):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(*names)


@pytest.fixture
def without_module(monkeypatch):
    """Make an optional dependency look as if it were not installed."""
    real = builtins.__import__

    def block(name):
        def missing(module, *args, **kwargs):
            if module.split(".")[0] == name:
                raise ImportError(module)
            return real(module, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", missing)

    return block


def test_txt_is_one_document_unless_separated(tmp_path):
    whole = write(tmp_path / "a.txt", "One.\n\nStill one.\n")
    parts = write(tmp_path / "b.txt", "One.\n<|endoftext|>\nTwo.<|endoftext|><|endoftext|>\n")
    assert read(whole) == ["One.\n\nStill one."]
    assert read(whole, parts) == ["One.\n\nStill one.", "One.", "Two."]


@pytest.mark.parametrize("chunk_bytes", [3, 4, 7, 12, 13, 14, 100])
def test_txt_chunks_cut_neither_characters_nor_separators(tmp_path, monkeypatch, chunk_bytes):
    documents = ["naïve café", "日本語のテキスト", "<|endof", "plain 🙂"]
    path = write(tmp_path / "a.txt", "\ufeff" + sources.SEPARATOR.join(documents))
    monkeypatch.setattr(text_files, "CHUNK_BYTES", chunk_bytes)
    assert read(path) == documents


def test_txt_is_read_no_further_than_consumed(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "CHUNK_BYTES", 16)
    path = write(tmp_path / "a.txt", b"first<|endoftext|>" + b"x" * 100 + b"\xff")
    documents = read_documents([path])
    assert next(documents) == "first"
    with pytest.raises(ValueError, match="byte 118 is not UTF-8"):
        next(documents)


def test_jsonl(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "One.", "id": 1}\n\n{"text": "Two."}\n')
    assert read(path) == ["One.", "Two."]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["One.", "Two."], "id": [1, 2]}), path)
    assert read(str(path)) == ["One.", "Two."]


def test_file_errors(tmp_path):
    refused("no source given")
    refused("absent.txt: no such file; check the path", str(tmp_path / "absent.txt"))
    refused("data/absent.csv: no such file", "data/absent.csv")
    refused("self: no such file", "self")
    refused("a folder, but data is read from files", str(tmp_path))
    refused("empty.txt: an empty file", write(tmp_path / "empty.txt", ""))
    refused("blank.txt: only blank text", write(tmp_path / "blank.txt", " \n<|endoftext|>\n"))
    refused("unknown suffix '.csv'; data is read from", write(tmp_path / "a.csv", "text"))
    refused("a.txt, line 1: byte 3 is not UTF-8", write(tmp_path / "a.txt", b"abc\xff\xfe"))
    refused("cut.txt, line 1: byte 3 is not UTF-8", write(tmp_path / "cut.txt", b"abc\xe3\x81"))


def test_the_byte_of_a_bad_character_counts_what_went_before(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "CHUNK_BYTES", 4)
    refused("byte 6 is not UTF-8", write(tmp_path / "a.txt", b"abc\xc3\xa9f\xe3\x81!!"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "a.jsonl, line 2: not JSON (Unterminated string"),
        (b'{"txt": "typo", "id": 3}', "line 2: no 'text' field (found 'txt', 'id'), and no"),
        (b"{}", "line 2: no 'text' field (found none)"),
        (b'{"messages": []}', "line 2: messages is []; write a list of role and content"),
        (b'["text"]', "line 2: list, not an object"),
        (b'{"text": 3}', "line 2: 'text' is int, not a string"),
        (b'{"text": " "}', "line 2: 'text' is empty; leave the row out"),
        (b'{"text": "\xff"}', "a.jsonl, line 2: byte 27 is not UTF-8"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b"\n")
    refused(message, path)


def test_blank_jsonl(tmp_path):
    refused("only blank lines", write(tmp_path / "a.jsonl", "\n\n"))


def test_parquet_errors(tmp_path, without_module):
    def table(name, **columns):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name)
        return str(tmp_path / name)

    refused("no 'text' field (found 'body')", table("a.parquet", body=["x"]))
    refused("b.parquet, row 2: 'text' is NoneType", table("b.parquet", text=["x", None]))
    refused("c.parquet, row 1: 'text' is int", table("c.parquet", text=[1]))
    refused("d.parquet: a table without rows", table("d.parquet", text=[]))
    refused("not a parquet file", write(tmp_path / "e.parquet", "text"))


def test_hub_names():
    assert sources.is_hub_name("roneneldan/TinyStories")
    assert sources.is_hub_name("owner/name-v1.1")
    for name in ("self", "wikitext", "./owner/name", "/owner/name", "data/a.txt", "a/b/c"):
        assert not sources.is_hub_name(name)


def hub(monkeypatch, load_dataset):
    module = types.ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hub_dataset_is_streamed(monkeypatch):
    def load_dataset(name, *, split, streaming):
        assert (name, split, streaming) == ("owner/name", "train", True)
        yield from ({"text": "One."}, {"text": ""}, {"text": "Two."}, {"body": "typo"})

    hub(monkeypatch, load_dataset)
    documents = read_documents(["owner/name"])
    assert [next(documents), next(documents)] == ["One.", "Two."]
    with pytest.raises(ValueError, match="owner/name, row 4: no 'text' field"):
        next(documents)


def test_hub_errors(monkeypatch, without_module):
    def load_dataset(name, *, split, streaming):
        raise ConnectionError("no route to host")

    hub(monkeypatch, load_dataset)
    refused("could not be opened (ConnectionError: no route to host); check", "owner/name")
    without_module("datasets")
    refused("needs `pip install fretsaw[hub]`", "owner/name")
