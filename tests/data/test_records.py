"""Rows of conversations: the three kinds that are read, and what is refused, with its line."""

import json
from pathlib import Path

import pytest

from fretsaw.chat.message import Message
from fretsaw.data.records import read_records

ON = "<think>\n1 + 1 = 2\n</think>\n\n2"
OFF = "detailed thinking off"
TURNS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def row(answer: str = ON, mode: str = "on", **more: object) -> dict[str, object]:
    turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "mode": mode, **more}


def test_our_rows(tmp_path: Path) -> None:
    [on, off] = read_records([write(tmp_path / "a.jsonl", row(), row("2", "off", id="7"))])
    assert on.messages == (Message("user", "1 + 1?"), Message("assistant", ON))
    assert (on.mode, off.mode) == ("on", "off")
    assert off.where.endswith("a.jsonl, line 2")


def test_the_post_training_record(tmp_path: Path) -> None:
    made = {
        "input": [{"role": "user", "content": "1 + 1?"}],
        "output": ON,
        "reasoning": "on",
        "system_prompt": "detailed thinking on",
        "category": "math",
    }
    text = {"input": "1 + 1?", "output": "2", "system_prompt": "detailed thinking off"}
    [on, off] = read_records([write(tmp_path / "a.jsonl", made, text)])
    assert on.messages[0] == Message("system", "detailed thinking on")
    assert on.messages[-1] == Message("assistant", ON)
    assert (on.mode, off.mode) == ("on", "off")


def test_gsm8k_makes_one_of_each_mode(tmp_path: Path) -> None:
    made = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 24"}
    [on, off] = read_records([write(tmp_path / "a.jsonl", made)])
    assert on.messages[-1].content == "<think>\n48/2 = 24 clips.\n</think>\n\n24"
    assert off.messages[-1].content == "24"


def test_real_gsm8k(data_folder: Path) -> None:
    records = list(read_records([str(data_folder / "gsm8k" / "train.jsonl")]))
    assert len(records) == 2 * 7473
    assert not any("<<" in record.messages[-1].content for record in records)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(""), "no answer; end messages"),
        ({"messages": [{"role": "user", "content": "Hi"}], "mode": "on"}, "no answer"),
        ({"messages": [{"role": "assistant", "content": "2"}], "mode": "off"}, "no question"),
        (row("2", "on"), "malformed .does not start with <think>"),
        (row("<think>\n1", "on"), "1 opening and 0 closing tags"),
        (row("<think>a</think>b</think>", "on"), "1 opening and 2 closing tags"),
        (row(ON, "off"), "tags with reasoning off"),
        (row(mode="maybe"), "mode is 'maybe'; write"),
        ({"messages": [], "mode": "on"}, r"messages is \[\]; write a list"),
        ({"messages": [{"role": "bot", "content": "x"}], "mode": "on"}, r"messages\[0\] is"),
        (
            {"messages": [*TURNS, {"role": "system", "content": "Hm."}, *TURNS], "mode": "off"},
            r"messages\[2\] is a system turn",
        ),
        ({"messages": [TURNS[0], *TURNS], "mode": "off"}, r"messages\[1\]: the user's turn comes"),
        ({"messages": [{"role": "user", "content": 3}], "mode": "on"}, "content is 3; write text"),
        ({"text": "plain"}, "fields 'text' are no conversation"),
        ({"question": "?", "answer": "24"}, "no answer after '####'"),
        ({"input": "?", "output": "2"}, "reasoning is None; write"),
        (
            {"input": "?", "output": ON, "reasoning": "on", "system_prompt": OFF},
            "system text asks for 'off'",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused_with_its_line(
    tmp_path: Path, bad: dict, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", row(), bad)
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{message}"):
        list(read_records([path]))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        list(read_records([str(tmp_path / "absent.jsonl")]))
    with pytest.raises(ValueError, match=r"'.txt' files have no rows; give .jsonl or .parquet"):
        list(read_records([str(Path(write(tmp_path / "a.txt", row())))]))
    (tmp_path / "b.jsonl").write_text('{"messages": []')
    with pytest.raises(ValueError, match="line 1: not JSON"):
        list(read_records([str(tmp_path / "b.jsonl")]))
