"""Examples: the loss mask marks the answers alone, and a question is held out in both its modes."""

import json
from itertools import compress
from pathlib import Path

from fretsaw.chat.control_tokens import TURN_END, add_control_tokens
from fretsaw.chat.message import Message
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.data.records import Record, read_records
from fretsaw.sft.examples import encode, is_heldout


def test_the_loss_mask_marks_the_answers_and_their_ends_of_turn(tiny: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny / "parent")
    add_control_tokens(tokenizer)
    turns = [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "2 + 2?")]
    messages = tuple(Message(*turn) for turn in (*turns, ("assistant", "It is 4.")))
    (example,), _ = encode([Record(messages, "off", "here")], tokenizer, 256, "refuse")
    learnt = [*compress(example.token_ids, example.loss_mask)]
    assert tokenizer.decode(learnt, skip_special=False) == f"2{TURN_END}It is 4.{TURN_END}"


def test_both_modes_of_a_question_are_held_out_together(tmp_path: Path) -> None:
    made = [{"question": f"{i} + {i}?", "answer": f"adding\n#### {2 * i}"} for i in range(99)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, made)))
    records = list(read_records([str(path)]))
    held = [is_heldout(record, 0.3) for record in records]
    assert held[::2] == held[1::2]
    assert 10 < sum(held[::2]) < 50
