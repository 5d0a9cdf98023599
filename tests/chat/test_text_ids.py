"""What begins a plain text: the ids that transformers gives, whatever the config names."""

import json
import random
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, processors
from transformers import AutoTokenizer

from fretsaw.chat.tokenizer import Tokenizer

PIECES = [
    *("Hello", " world", "  ", "\n", "\n\n", "\t", "\r\n", "it's", "we'll", "CAN'T", "12345"),
    *("3.14", "é", "e\u0301", "東京", "🙂", "🙂\u200d🙂", "…", "x = f(y)  # z", "{", "}", "<b>"),
    *("ß", "\u00a0", "."),
]


def texts(number: int = 200) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(PIECES, k=rng.randint(0, 9))) for _ in range(number)]


def assert_same_ids(folder: Path) -> None:
    theirs, own = AutoTokenizer.from_pretrained(str(folder)), Tokenizer.from_folder(folder)
    for text in texts():
        assert list(own.text_ids(text)) == theirs(text)["input_ids"], repr(text)


@pytest.mark.parametrize("name", ["models/stories260K", "tokenizers/llama3"])
def test_plain_texts_have_the_ids_that_transformers_gives(name: str, data_folder: Path) -> None:
    assert_same_ids(data_folder / name)


@pytest.mark.parametrize("adds", [None, True, False])
@pytest.mark.parametrize("has_begin", [True, False])
def test_the_post_processor_alone_begins_a_text(
    has_begin: bool, adds: bool | None, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.train(["".join(PIECES)] * 3, 300)
    tokenizer.save(tmp_path)
    if not has_begin:
        raw = json.loads((tmp_path / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": None}))
    path = tmp_path / "tokenizer_config.json"
    own = json.loads(path.read_text())
    path.write_text(json.dumps(own if adds is None else own | {"add_bos_token": adds}))
    read = Tokenizer.from_folder(tmp_path)
    assert read.begin_ids == ((read.bos_token_id,) if has_begin else ())
    assert read.end_ids == ()
    assert_same_ids(tmp_path)


@pytest.mark.parametrize("begins", [True, False])
def test_a_vocabulary_without_letters_has_its_beginning_too(begins: bool) -> None:
    inner = tokenizers.Tokenizer(models.BPE({"<s>": 0, "b": 1}, []))
    if begins:
        around = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        inner.post_processor = around
    tokenizer = Tokenizer(inner, bos_token_id=0)
    assert (tokenizer.begin_ids, tokenizer.end_ids) == ((0,) if begins else (), ())


def test_what_follows_a_text_is_told_from_what_begins_it() -> None:
    inner = tokenizers.Tokenizer.from_str(Tokenizer.train(["a b"], 280).to_json())
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = Tokenizer(inner, bos_token_id=0, eos_token_ids=(1,))
    assert (tokenizer.begin_ids, tokenizer.end_ids) == ((0,), (1,))
    assert tokenizer.text_ids("a") == (0, *tokenizer.encode("a"))
