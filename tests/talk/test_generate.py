"""Prompts from a file: every kind of row, going on after an interruption, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from engines import make_decoder

from fretsaw.chat.control_tokens import add_control_tokens
from fretsaw.chat.message import Message
from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import RequestFailed
from fretsaw.talk.generate import Asked, _as_json, _prompt, generate_file, read_prompts
from fretsaw.talk.loaded import LoadedModel


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    tokenizer = Tokenizer.train(["one two three four five"] * 3, vocab_size=280)
    add_control_tokens(tokenizer)
    decoder = make_decoder("mixed").with_vocab(tokenizer.vocab_size, tokenizer.eos_token_ids)
    return LoadedModel(decoder, tokenizer, NemotronFormat(tokenizer))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"id": "a", "prompt": "one two"},
        {"prompt": "three"},
        {"messages": [{"role": "user", "content": "four?"}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SAMPLING = Sampling(max_tokens=6, temperature=1.0)


def rows_of(path: Path) -> dict[tuple[str, int], dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["id"], row["sample"]): row for row in rows}


def test_every_prompt_is_answered_as_alone(model: LoadedModel, prompts: Path) -> None:
    out = prompts.with_name("new") / "answers.jsonl"
    assert generate_file(model, prompts, out, SAMPLING, num_samples=3) == 9
    rows = rows_of(out)
    assert set(rows) == {(id, sample) for id in ("a", "1", "2") for sample in range(3)}
    for (id, _), row in rows.items():
        if id == "a":
            settings = {"max_tokens": 6, "temperature": 1.0, "seed": row["seed"]}
            assert row["text"] == model.generate("one two", **settings)
            assert row["prompt"] == "one two"
    assert len({row["seed"] for row in rows.values()}) == 9
    assert rows["2", 0]["messages"] == [{"role": "user", "content": "four?"}]


def test_an_interrupted_file_is_gone_on_with(model: LoadedModel, prompts: Path) -> None:
    whole, cut = prompts.with_name("whole.jsonl"), prompts.with_name("cut.jsonl")
    generate_file(model, prompts, whole, SAMPLING, num_samples=2)
    generate_file(model, prompts, cut, SAMPLING, num_samples=2)
    lines = cut.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:2]) + lines[2][:10])  # killed within a line
    assert generate_file(model, prompts, cut, SAMPLING, num_samples=2) == 4
    assert rows_of(cut) == rows_of(whole)
    assert generate_file(model, prompts, cut, SAMPLING, num_samples=2) == 0
    assert generate_file(model, prompts, cut, SAMPLING, num_samples=3) == 3  # more of the same


def test_other_settings_or_files_are_not_gone_on_with(model: LoadedModel, prompts: Path) -> None:
    out = prompts.with_name("answers.jsonl")
    generate_file(model, prompts, out, SAMPLING)
    before = out.read_text()
    with pytest.raises(ValueError, match="begun with other temperature; give another --out"):
        generate_file(model, prompts, out, Sampling(max_tokens=6))
    prompts.write_text(prompts.read_text().replace("three", "five"))
    with pytest.raises(ValueError, match="begun with other prompts"):
        generate_file(model, prompts, out, SAMPLING)
    assert out.read_text() == before
    with pytest.raises(ValueError, match="not written by this command"):
        generate_file(model, prompts, prompts, SAMPLING)


def test_stop_texts_end_answers(model: LoadedModel, prompts: Path) -> None:
    free = prompts.with_name("free.jsonl")
    generate_file(model, prompts, free, Sampling(max_tokens=12))
    text = rows_of(free)["1", 0]["text"]
    stop = text[3:5]
    out = prompts.with_name("stopped.jsonl")
    generate_file(model, prompts, out, Sampling(max_tokens=12, stop=(stop,)))
    row = rows_of(out)["1", 0]
    assert (row["text"], row["finish_reason"]) == (text[: text.index(stop)], "stop")
    assert not model.engine.has_work


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "only blank lines"),
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n', "two prompts have the id 'a'"),
        ('{"question": "x"}\n', "prompt is None"),
    ],
)
def test_unclear_prompts_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_a_prompt_beyond_the_context_is_named(model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n" + "9" * 200 + "\n")
    with pytest.raises(ValueError, match="prompt 1: prompt: 201 tokens, but the model's context"):
        generate_file(model, path, tmp_path / "out.jsonl", SAMPLING)
    path.write_text("one\n")
    assert generate_file(model, path, tmp_path / "out.jsonl", SAMPLING) == 1


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", rb'{"prompt": "a \ud83d b"}', "line 1: prompt holds half of a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, "line 1: nested too deeply"),
        ("a.txt", b"one\ntwo \xff", "line 2: byte 8 is not UTF-8"),
        ("a.txt", "one".encode("utf-16"), "it looks like UTF-16"),
        ("a.parquet", b"PAR1", "not a parquet file"),
        ("a.jsonl", b'{"prompt": 3}', "line 1: prompt is 3; write a prompt"),
        ("a.jsonl", b'{"prompt": [{"role": "bot"}]}', r"line 1: messages\[0\] is"),
    ],
)
def test_a_prompts_file_that_cannot_be_read(
    tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        read_prompts(tmp_path / name)


def test_prompts_with_tools_calls_and_parts(model: LoadedModel, tmp_path: Path) -> None:
    call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    path = tmp_path / "a.jsonl"
    rows = [{"messages": turns, "tools": [{"name": "add"}]}, {"prompt": turns}]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_prompts(path)
    assert (first.tools, second.tools) == (({"name": "add"},), ())
    assert first.prompt == second.prompt
    told = model.tokenizer.decode(_prompt(model, first, None)[0])
    assert '<AVAILABLE_TOOLS>[{"name": "add"}]' in told
    assert '<TOOLCALL>[{"name": "add", "arguments": {"a": 1}}]</TOOLCALL>' in told
    assert _as_json(first.prompt)[1]["tool_calls"] == [{"name": "add", "arguments": {"a": 1}}]


def test_lines_of_a_text_file_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\u2028two\r\n\nthree\x0bfour\n".encode())
    asked = {one.id: one.prompt for one in read_prompts(path)}
    assert asked == {"0": "one\u2028two", "2": "three\x0bfour"}


def test_a_prompt_and_messages_of_one_row_agree(tmp_path: Path) -> None:
    path, user = tmp_path / "a.jsonl", {"role": "user", "content": "one?"}
    for prompt in (None, "", "one?", [user]):
        path.write_text(json.dumps({"prompt": prompt, "messages": [user]}))
        assert read_prompts(path)[0].prompt == (Message("user", "one?"),)
    for prompt in ("two?", [{"role": "user", "content": "two?"}]):
        path.write_text(json.dumps({"prompt": prompt, "messages": [user]}))
        with pytest.raises(ValueError, match=r"line 1: prompt and messages are both there and dis"):
            read_prompts(path)


@pytest.fixture
def poisoned(model: LoadedModel) -> LoadedModel:
    """The same model, in which a token of "three" is NaN."""
    others = [Asked("a", "one two"), Asked("b", (Message("user", "four?"),))]
    known = {id for one in others for id in _prompt(model, one, None)[0]}
    poison = next(id for id in model.tokenizer.encode("three") if id not in known)
    decoder = make_decoder("mixed").with_vocab(
        model.tokenizer.vocab_size, model.tokenizer.eos_token_ids
    )
    with torch.no_grad():
        embedding = decoder.model.embed_tokens
        embedding.weight = torch.nn.Parameter(embedding.weight.clone())
        embedding.weight[poison] = torch.nan
    return LoadedModel(decoder, model.tokenizer, model.format)


def test_an_answer_that_fails_is_a_row_that_says_why(
    model: LoadedModel, poisoned: LoadedModel, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prompts.with_name("out.jsonl")
    assert generate_file(poisoned, prompts, out, Sampling(max_tokens=3), num_samples=2) == 6
    rows = rows_of(out)
    for (id, _), row in rows.items():
        is_bad = id == "1"
        assert (row["finish_reason"] == "error") == is_bad == ("error" in row)
        assert (row["num_tokens"] == 0) == is_bad
    assert "logits are not finite" in rows["1", 0]["error"]
    assert "generate: 2 of 6 answers failed, the first of prompt 1: " in capsys.readouterr().err
    # They are asked again: by themselves all fail, and a whole model answers them.
    with pytest.raises(
        RequestFailed, match=r"generate: 2 of 2 answers failed, the first of prompt"
    ):
        generate_file(poisoned, prompts, out, Sampling(max_tokens=3), num_samples=2)
    assert len(rows_of(out)) == 6
    assert generate_file(model, prompts, out, Sampling(max_tokens=3), num_samples=2) == 2
    assert {row["finish_reason"] for row in rows_of(out).values()} <= {"stop", "length"}
    assert len(out.read_text().splitlines()) == 6
    assert not poisoned.engine.has_work
