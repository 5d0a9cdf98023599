"""Examples: the loss mask marks the answers alone, and a question is held out in both its modes."""

import json
from itertools import compress
from pathlib import Path

from fretsaw.chat.control_tokens import TURN_END, add_control_tokens
from fretsaw.chat.message import Message
from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.toggle import Toggle
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.data.records import Record, read_records
from fretsaw.sft.examples import encode, example_of, is_heldout


def test_the_loss_mask_marks_the_answers_and_their_ends_of_turn(tiny: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny / "parent")
    add_control_tokens(tokenizer)
    turns = [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "2 + 2?")]
    messages = tuple(Message(*turn) for turn in (*turns, ("assistant", "It is 4.")))
    (example,), _ = encode(
        [Record(messages, "off", "here")], NemotronFormat(tokenizer), 256, "refuse"
    )
    learnt = [*compress(example.token_ids, example.loss_mask)]
    assert tokenizer.decode(learnt, skip_special=False) == f"2{TURN_END}It is 4.{TURN_END}"


def learnt(row: dict, tiny: Path, tmp_path: Path, toggle: Toggle = "v1") -> tuple[str, str]:
    """Return what is read of a row, and what of it is learnt."""
    tokenizer = Tokenizer.from_folder(tiny / "parent")
    add_control_tokens(tokenizer)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    [record] = read_records([str(path)], toggle)
    example = example_of(record, NemotronFormat(tokenizer, toggle))
    masked = [*compress(example.token_ids, example.loss_mask)]
    whole = tokenizer.decode(example.token_ids, skip_special=False)
    return whole, tokenizer.decode(masked, skip_special=False)


ANSWER = {"role": "assistant", "content": "a"}
CALLED = '<TOOLCALL>[{"name": "add", "arguments": {"a": 1}}]</TOOLCALL>'


def test_tools_and_calls_are_rendered_and_the_calls_are_learnt(tiny: Path, tmp_path: Path) -> None:
    function = {"name": "add", "description": "Add."}
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    row = {"messages": turns, "tools": [{"type": "function", "function": function}]}
    read, taught = learnt(row, tiny, tmp_path)
    assert f"<AVAILABLE_TOOLS>[{json.dumps(function)}]</AVAILABLE_TOOLS>" in read
    assert "<TOOL_RESPONSE>[3]</TOOL_RESPONSE>" in read
    assert taught == f"{CALLED}{TURN_END}It is 3.{TURN_END}"
    ends_with_call = {**row, "messages": turns[:2]}
    assert learnt(ends_with_call, tiny, tmp_path)[1] == f"{CALLED}{TURN_END}"
    turns[1]["reasoning_content"] = "hm"
    for toggle in ("v1", "v1.5"):
        taught = learnt(ends_with_call, tiny, tmp_path, toggle)[1]
        assert taught == f"<think>\nhm\n</think>\n\n{CALLED}{TURN_END}"


def test_a_system_text_of_v1_5_loses_its_flag(tiny: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"messages": turns, "system": "Be brief. /no_think"}
    assert "Be brief. /no_think" in learnt(row, tiny, tmp_path)[0]
    read, taught = learnt(row, tiny, tmp_path, "v1.5")
    assert "Be brief.\n\n<|eot_id|>" in read
    assert taught == f"a{TURN_END}"
    assert read.endswith(f"<think>\n\n</think>\n\na{TURN_END}")


def test_what_is_not_to_be_learnt_is_not(tiny: Path, tmp_path: Path) -> None:
    turns: list[dict] = [{"role": "user", "content": "q"}, ANSWER] * 3
    turns[1] = {**ANSWER, "weight": 0}
    turns[5] = {**ANSWER, "content": "b", "weight": 0}
    read, taught = learnt({"messages": turns}, tiny, tmp_path)
    assert taught == f"a{TURN_END}"
    assert f"b{TURN_END}" not in read
    row = {"prompt": turns[:5], "completion": [{"role": "assistant", "content": "c"}]}
    assert learnt(row, tiny, tmp_path)[1] == f"c{TURN_END}"


def test_both_modes_of_a_question_are_held_out_together(tmp_path: Path) -> None:
    made = [{"question": f"{i} + {i}?", "answer": f"adding\n#### {2 * i}"} for i in range(99)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, made)))
    records = list(read_records([str(path)]))
    held = [is_heldout(record, 0.3) for record in records]
    assert held[::2] == held[1::2]
    assert 10 < sum(held[::2]) < 50
