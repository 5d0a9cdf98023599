"""Tokenizers: ids of the text alone, exact round trips, streams that split no character."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fretsaw.chat.tokenizer import StreamDecoder, Tokenizer

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "  two spaces, a\ttab\nand a line.  ",
    "12 + 345 = 357",
    "naïve café, 東京, Здравствуй, 👩‍👩‍👧 🙂",
    "<s>plain text</s> and <|eot_id|>",
    "",
    " ",
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 330)


def test_training_round_trips_any_text(trained: Tokenizer) -> None:
    assert trained.vocab_size == 330
    assert (trained.bos_token_id, trained.eos_token_ids) == (0, (1,))
    for text in [*TEXTS, "never seen: \x00 ∮ 𝄞 ~"]:
        assert trained.decode(trained.encode(text)) == text
    assert trained.encode_batch(TEXTS) == [trained.encode(text) for text in TEXTS]


def test_digits_stand_alone(trained: Tokenizer) -> None:
    ids = trained.encode("357")
    assert [trained.token(id) for id in ids] == ["3", "5", "7"]


def test_special_text_stays_text(trained: Tokenizer) -> None:
    ids = trained.encode("<s>a</s>")
    assert not set(ids) & {0, 1}
    assert trained.decode([0, *ids, 1]) == "<s>a</s>"
    assert trained.decode([0, *ids, 1], skip_special=False) == "<s><s>a</s></s>"
    assert (trained.token_id("</s>"), trained.token_id("no such token")) == (1, None)


def test_training_is_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Tokenizer.train(iter(TEXTS * 3), 330, ("<s>", "</s>", "<|x|>")).save(tmp_path / name)
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size 257 is below the 258"):
        Tokenizer.train(TEXTS, 257)


def test_saved_folders_open_in_transformers(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, PreTrainedTokenizerFast)
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (0, 1, 330)
    assert (again.bos_token_id, again.eos_token_ids) == (0, (1,))
    for text in TEXTS:
        assert again.encode(text) == trained.encode(text)
        if "<s>" not in text:  # which transformers takes for the special token
            assert theirs(text).input_ids == [0, *trained.encode(text)]
            assert theirs.decode(trained.encode(text)) == text


def test_shared_tokenizers(model_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(model_folder)
    theirs = AutoTokenizer.from_pretrained(model_folder)
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == (2, 1)
    assert tokenizer.vocab_size == len(theirs)
    text = "She saw a big, red ball."
    assert tokenizer.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 1 not in tokenizer.encode("<s>")


def test_eos_ids_come_from_all_files(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 9, "eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 1]}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.eos_token_ids == (1, 8, 7)
    assert tokenizer.bos_token_id == 0


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer\.json; give a folder that has one"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "raw", [b"{", b"[" * 100_000, b"\xff\xfe{", b"[]", b'{"a": ' + b"9" * 5000]
)
def test_a_config_that_is_no_json_object_is_named(trained: Tokenizer, tmp_path: Path, raw) -> None:
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(raw)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not .*; download it again"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_streams_split_no_character(trained: Tokenizer, text: str, size: int) -> None:
    _check_stream(trained, trained.encode(text), size, text)


def test_streams_of_shared_tokenizers(stories_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(stories_folder)
    for text in TEXTS:
        ids = [1, *tokenizer.encode(text), 1, *tokenizer.encode("é end")]
        _check_stream(tokenizer, ids, 1, tokenizer.decode(ids))


def test_a_stream_continues_its_prompt(stories_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(stories_folder)
    prompt, ids = [1, *tokenizer.encode("There was Lily.")], tokenizer.encode("She sang.")
    assert StreamDecoder(tokenizer).feed(ids) == "She sang."
    assert StreamDecoder(tokenizer, after=prompt).feed(ids) == " She sang."


def test_streams_of_llama3(data_folder: Path) -> None:
    folder = data_folder / "tokenizers" / "llama3"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.vocab_size == 128256
    assert tokenizer.token_id("<|eot_id|>") == 128009
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert max(ids, default=0) < 128000
        _check_stream(tokenizer, ids, 1, text)


def test_an_unfinished_character_comes_with_the_flush(trained: Tokenizer) -> None:
    ids = trained.encode("a𝄞")[:-1]
    stream = StreamDecoder(trained)
    assert [stream.feed([id]) for id in ids] == ["a", *[""] * (len(ids) - 1)]
    assert stream.flush() == trained.decode(ids)[1:]
    assert stream.flush() == ""


def _check_stream(tokenizer: Tokenizer, ids: list[int], size: int, text: str) -> None:
    stream = StreamDecoder(tokenizer)
    pieces = [stream.feed(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text


def test_the_bytes_of_the_tokens_are_the_text(model_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(model_folder)
    text = "Once upon a time, Tom said so."
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode().lstrip() == text
    assert tokenizer.token_bytes(tokenizer.encode_raw("<s>")[-1]) == b"<s>"


def test_the_bytes_of_a_byte_level_token() -> None:
    tokenizer = Tokenizer.train(["a text"], 258)
    text = "naïve 😀\n\x00\xad end"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


def test_names_of_special_tokens_stand_for_them_only_when_asked() -> None:
    tokenizer = Tokenizer.train(["a text"], 258)
    tokenizer.add_special_tokens(["<s>s"])
    ids = tokenizer.encode_raw("<s>a</s><s>sb")
    special = {name: tokenizer.token_id(name) for name in ("<s>", "</s>", "<s>s")}
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    assert ids == [special["<s>"], a, special["</s>"], special["<s>s"], b]
    assert not set(special.values()) & set(tokenizer.encode("<s>a</s><s>sb"))
    assert tokenizer.is_special(ids[0])
    assert not tokenizer.is_special(a)


def test_half_of_a_surrogate_pair_is_refused(trained: Tokenizer) -> None:
    for text in ("a \ud83d b", "\udcff", "\ud83d" * 5000):
        with pytest.raises(ValueError, match="half of a surrogate pair, or bytes that are not"):
            trained.encode(text)
        with pytest.raises(ValueError, match="write whole characters in UTF-8"):
            trained.encode_batch(["a", text])
