"""The preview: counts by kind and mode, masks that can be read without colours, same refusals."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import stage_run

from fretsaw.sft.doctor import preview
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.train import tune

SETTINGS = SftSettings(heldout_share=0.0, seq_len=256, batch_tokens=512, micro_batch_tokens=256)


def turns(question: str, answer: str, **more: object) -> dict:
    asked = {"role": "user", "content": question}
    return {"messages": [asked, {"role": "assistant", "content": answer, **more}]}


def shown(tiny: Path, tmp_path: Path, *rows: dict, **settings) -> str:
    data = tmp_path / "a.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    inputs = {"model": tiny / "parent", "data": data}
    return preview(replace(SETTINGS, **settings), inputs, 0)


def test_rows_are_counted_by_kind_and_mode(tiny: Path, tmp_path: Path) -> None:
    call = {"name": "add", "arguments": {}}
    chat = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2
    text = shown(
        *(tiny, tmp_path, turns("q", "a"), turns("q", "a", reasoning="hm")),
        {**turns("q", "", tool_calls=[call]), "tools": [{"name": "add"}]},
        {"conversations": chat, "system": "s"},
        {"conversations": [{**chat[0]}, {**chat[1], "weight": 0}, *chat]},
        {"messages": [*turns("q", "")["messages"], *turns("q", "a")["messages"]]},
    )
    lines = text.splitlines()
    assert "6 conversations to tune on, 0 held out" in lines
    counts = {line[:-20].strip(): line[-20:].split() for line in lines if line[-1:].isdigit()}
    assert counts["rows of messages"] == ["1", "3"]
    assert counts["rows of conversations"] == ["0", "2"]
    assert counts["with several answers"] == ["0", "3"]
    assert counts["with a system text"] == ["0", "1"]
    assert counts["with tools"] == counts["with tool calls"] == ["0", "1"]
    assert counts["with answers that are not learnt"] == ["0", "2"]


def test_the_first_of_each_kind_are_shown_token_by_token(tiny: Path, tmp_path: Path) -> None:
    text = shown(tiny, tmp_path, turns("é\x1b[31m", "so\tit is"), turns("q", "hidden"))
    _, _, example = text.partition("a.jsonl, line 1 (messages, reasoning off): ")
    learnt = [line[4:] for line in example.splitlines() if line.startswith(">>> ")]
    assert "".join(learnt).replace("·", "") == "so⇥it is<|eot_id|>"
    assert all(line[:4] in (">>> ", "    ") for line in example.splitlines()[1:])
    assert "\\x1b·[·" in example
    assert "\x1b" not in text
    assert "hidden" not in text.replace("·", "")


def test_long_stretches_are_cut_in_the_middle(tiny: Path, tmp_path: Path) -> None:
    text = shown(tiny, tmp_path, turns("q", "begin " + "@" * 150 + " end"))
    plain = "".join(line[4:] for line in text.splitlines() if line.startswith(">>> "))
    assert plain.replace("·", "").startswith("begin @")
    assert plain.replace("·", "").endswith("@ end<|eot_id|>")
    assert " more]·" in plain


def test_its_figures_are_those_of_the_run(tiny: Path, tmp_path: Path) -> None:
    world = replace(SETTINGS, source="world", num_rows=30, heldout_share=0.2)
    inputs = {"model": tiny / "parent"}
    text = preview(world, inputs, 0)
    metrics = tune(world, inputs, stage_run(tmp_path))
    assert f"{metrics['rows']} conversations to tune on, 6 held out" in text
    assert f"{metrics['tokens']:,} tokens, of which" in text
    assert f"steps: {metrics['steps']}" in text
    assert "tokens added: <|start_header_id|>" in text
    assert text.count("generated problem") == 2


def test_it_refuses_what_tuning_refuses(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: no answer"):
        shown(tiny, tmp_path, turns("q", "a"), turns("q", ""))
    with pytest.raises(ValueError, match=r"line 1: \d+ tokens, but a row holds 256"):
        shown(tiny, tmp_path, turns("q " * 200, "a"))
    with pytest.raises(ValueError, match="no conversations are left"):
        shown(tiny, tmp_path, turns("q " * 200, "a"), too_long="skip")
    both = shown(tiny, tmp_path, turns("q " * 200, "a"), turns("q", "a"), too_long="skip")
    assert "0 held out, 1 longer than 256 tokens left out" in both
    with pytest.raises(ValueError, match="seq_len 5000: the model's context is 1024"):
        shown(tiny, tmp_path, turns("q", "a"), seq_len=5000)
