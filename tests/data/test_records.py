"""Rows of conversations: the kinds that are read, and what is refused, with its line."""

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fretsaw.chat.message import Message
from fretsaw.chat.render import answer_text
from fretsaw.chat.toggle import TOGGLES, Toggle
from fretsaw.chat.tools import ToolCall
from fretsaw.data.records import Record, read_records, records_of
from fretsaw.stage.json_text import LoneSurrogate, parse_json

ON = "<think>\n1 + 1 = 2\n</think>\n\n2"
OFF, LINE_ON = "detailed thinking off", "detailed thinking on"
TURNS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
SYSTEM, TOLD = {"role": "system", "content": "Be brief."}, {"role": "tool", "content": "2"}


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


def test_real_sharegpt_and_instructions(data_folder: Path) -> None:
    files = ["fastchat_dummy/dummy_conversation.json", "gpteacher/codegen-instruct.json"]
    found = list(read_records([str(data_folder / name) for name in files]))
    assert Counter(record.kind for record in found) == {
        "conversations": 500,
        "instruction, response": 4535,
    }
    assert found[0].messages[0] == Message("user", "Who are you?")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(""), "no answer; end messages"),
        ({"messages": [{"role": "user", "content": "Hi"}], "mode": "on"}, "no answer"),
        (
            {"messages": TURNS[1:], "mode": "off"},
            r"messages\[0\]: the assistant's turn comes first",
        ),
        (
            {"messages": [*TURNS, TURNS[1]]},
            r"messages\[2\]: the assistant's turn comes after the a",
        ),
        ({"messages": [TURNS[1], *TURNS]}, r"messages\[0\]: the assistant's turn comes first"),
        ({"messages": [TOLD, *TURNS]}, r"messages\[0\]: the tool's turn comes first"),
        ({"messages": [TURNS[0], TOLD, TURNS[1]]}, r"messages\[1\]: the tool's turn comes after"),
        ({"messages": [*TURNS, TOLD, TURNS[1]]}, "result after an answer that calls none; give"),
        (
            {"messages": [SYSTEM, TURNS[1]]},
            "the assistant's turn comes after the system's; an answ",
        ),
        (
            {"messages": [SYSTEM, TOLD, TURNS[1]]},
            "the tool's turn comes after the system's; a resu",
        ),
        ({"prompt": TURNS, "completion": "3"}, r"messages\[2\]: the assistant's turn comes after"),
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
        ({"messages": [{"role": "user", "content": 3}], "mode": "on"}, "content is 3; write text"),
        ({"text": "plain"}, "fields 'text' are no conversation"),
        ({"question": "?", "answer": "24"}, "no answer after '####'"),
        ({"input": "?", "output": "2"}, "reasoning is None; write"),
        (
            {"input": "?", "output": ON, "reasoning": "on", "system_prompt": OFF},
            "system text asks for 'off'",
        ),
        (
            {"input": "?", "output": "2", "reasoning": "off", "system_prompt": f"Hm.\n{LINE_ON}"},
            "reasoning is 'off', but its system text asks for 'on'",
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


# --- what people have -----------------------------------------------------------------------------

CALL = {"type": "function", "id": "x", "function": {"name": "add", "arguments": '{"a": 1}'}}
EMPTY = ("", " ", None, {}, "{}", "null", " null ")  # arguments of a call that has none
CALLED = (ToolCall("add", {"a": 1}),)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def records(tmp_path: Path, *rows: object, toggle: Toggle = "v1") -> list[Record]:
    return list(read_records([write(tmp_path / "a.jsonl", *rows)], toggle))


def said(record: Record) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in record.messages]


ASKED = [("user", "1 + 1?"), ("assistant", "2")]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"messages": TURNS}, "messages"),
        ({"messages": json.dumps(TURNS)}, "messages"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "1 + 1?"},
                    {"from": "gpt", "value": "2"},
                ]
            },
            "conversations",
        ),
        ({"conversations": TURNS}, "conversations"),
        ({"prompt": "1 + 1?", "completion": "2"}, "prompt, completion"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt, completion"),
        ({"prompt": "1 + 1?", "response": "2"}, "prompt, response"),
        ({"question": "1 + 1?", "response": "2"}, "question, response"),
        ({"instruction": "1 + 1?", "input": "", "output": "2"}, "instruction, output"),
        ({"instruction": "1 + 1?", "response": "2"}, "instruction, response"),
        ({"messages": TURNS, "prompt": "1 + 1?", "completion": "2"}, "messages"),
        ({"messages": TURNS, "question": "1 + 1?", "answer": "2"}, "messages"),
        ({"messages": [], "prompt": "1 + 1?", "completion": "2"}, "prompt, completion"),
    ],
)
def test_every_kind_of_row(tmp_path: Path, given: dict, kind: str) -> None:
    for more in ({}, {"mode": None, "tools": None, "text": None, "id": 1}):
        [record] = records(tmp_path, {**more, **given})
        assert (said(record), record.mode, record.kind) == (ASKED, "off", kind)


def test_sharegpt_with_tools(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "1 + 1?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "It is 2."},
    ]
    made = {"conversations": turns, "system": "Be brief.", "tools": json.dumps([TOOL])}
    [record] = records(tmp_path, made)
    assert record.messages == (
        Message("system", "Be brief."),
        Message("user", "1 + 1?"),
        Message("assistant", tool_calls=CALLED),
        Message("tool", "2"),
        Message("assistant", "It is 2."),
    )
    assert record.tools == (TOOL,)


def test_an_instruction_with_an_input(tmp_path: Path) -> None:
    [record] = records(tmp_path, {"instruction": "Add.", "input": "1, 1", "output": "2"})
    assert said(record) == [("user", "Add.\n\n1, 1"), ("assistant", "2")]
    asked = {"instruction": "1 + 1?", "output": "2"}
    [record] = records(tmp_path, {**asked, "history": [["1 + 1?", "2"]]})
    assert said(record) == ASKED * 2
    with pytest.raises(ValueError, match="history has 'a'; write pairs of question, answer"):
        records(tmp_path, {**asked, "history": ["a"]})


def test_what_stands_in_a_prompt_is_not_learnt(tmp_path: Path) -> None:
    made = {"prompt": [*TURNS, TURNS[0]], "completion": TURNS[1:], "system": "s"}
    [record] = records(tmp_path, made)
    answers = [n for n, message in enumerate(record.messages) if message.role == "assistant"]
    assert [n in record.unlearnt for n in answers] == [True, False]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_trace_in_a_field_of_its_own(tmp_path: Path, name: str) -> None:
    answer = {"role": "assistant", "content": "2", name: "1 + 1 = 2"}
    for made in (
        {"messages": [TURNS[0], answer]},
        {"messages": [TURNS[0], {**answer, "content": ON}]},
        {"prompt": "1 + 1?", "completion": "2", name: "1 + 1 = 2"},
    ):
        [record] = records(tmp_path, made)
        assert record.mode == "on"
        assert answer_text(record.messages[-1]) == ON


def test_the_mode_is_said_or_asked_for_or_that_of_the_answer(tmp_path: Path) -> None:
    def mode(answer: str, toggle: Toggle = "v1", **more: object) -> str:
        turns = [TURNS[0], {"role": "assistant", "content": answer}]
        return records(tmp_path, {"messages": turns, **more}, toggle=toggle)[0].mode

    assert [mode(ON), mode("2"), mode(ON, mode=""), mode("2", mode=None)] == ["on", "off"] * 2
    with pytest.raises(ValueError, match="mode on, but its answer is malformed"):
        mode("2", system="detailed thinking on")
    assert mode("2", "v1.5", system="detailed thinking on") == "off"
    with pytest.raises(ValueError, match="mode on, but its answer is malformed"):
        mode("2", "v1.5", system="Be brief. /think")


def test_a_system_text_is_read_by_the_toggle_of_the_model(tmp_path: Path) -> None:
    flagged = row("2", "off", system="Be brief. /think")
    assert records(tmp_path, flagged)[0].mode == "off"
    with pytest.raises(ValueError, match="line 1: mode is 'off', but its system text asks for 'on"):
        records(tmp_path, flagged, toggle="v1.5")
    plain = row("2", "off", system="detailed thinking on")
    for toggle in ("v1.5", "none"):
        [record] = records(tmp_path, plain, toggle=toggle)
        assert said(record)[0] == ("system", "detailed thinking on")
    with pytest.raises(ValueError, match="line 1: mode is 'off', but its system text asks for 'on"):
        records(tmp_path, plain)


def test_the_published_record_on_a_model_of_another_toggle(tmp_path: Path) -> None:
    """Its system text says the mode in v1's words, which are not the user's own."""
    made = {"input": "1 + 1?", "output": ON, "system_prompt": "detailed thinking on"}
    assert said(records(tmp_path, made)[0])[0][0] == "system"
    [record] = records(tmp_path, made, toggle="v1.5")
    assert (said(record)[0], record.mode) == (("user", "1 + 1?"), "on")
    for text in (f"{LINE_ON}\n\nBe kind.", "Be kind.\n  Detailed Thinking ON "):
        [record] = records(tmp_path, {**made, "system_prompt": text}, toggle="v1.5")
        assert (said(record)[0], record.mode) == (("system", "Be kind."), "on")
    for toggle in TOGGLES:
        with pytest.raises(
            ValueError, match=r"line 1: reasoning is 'off', but its system text ask"
        ):
            records(tmp_path, {**made, "output": "2", "reasoning": "off"}, toggle=toggle)


def test_turns_of_rows_that_may_follow_one_another(tmp_path: Path) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    written = {"role": "assistant", "content": '<TOOLCALL>[{"name": "add"}]</TOOLCALL>'}
    for turns in (
        [SYSTEM, TURNS[0], *TURNS],
        [TURNS[0], called, TOLD, TOLD, TURNS[1]],
        [TURNS[0], written, TOLD, *TURNS],
        [SYSTEM, *TURNS, TURNS[0], called],
    ):
        [record] = records(tmp_path, {"messages": turns})
        assert len(record.messages) == len(turns)


def test_tool_calls_of_an_answer(tmp_path: Path) -> None:
    inner = CALL["function"]
    empty = [{"function": {"name": "add", "arguments": a}} for a in EMPTY]
    for calls, expected in (
        ([CALL], CALLED),
        (json.dumps([CALL]), CALLED),
        ([{"name": "add", "arguments": {"a": 1}}], CALLED),
        ([inner, {"name": "add"}], (*CALLED, ToolCall("add", {}))),
        (empty, (ToolCall("add", {}),) * len(EMPTY)),
    ):
        answer = {"role": "assistant", "content": None, "tool_calls": calls}
        [record] = records(tmp_path, {"messages": [TURNS[0], answer], "tools": [TOOL]})
        assert record.messages[-1] == Message("assistant", tool_calls=expected)
        assert (record.tools, record.mode) == ((TOOL,), "off")
    legacy = {"role": "assistant", "content": "", "function_call": inner}
    result = {"role": "function", "name": "add", "content": "2"}
    turns = [TURNS[0], legacy, result, TURNS[1]]
    [record] = records(tmp_path, {"messages": turns, "functions": [TOOL["function"]]})
    assert record.messages[1].tool_calls == CALLED
    assert record.messages[2] == Message("tool", "2", name="add")


def test_tags_in_the_arguments_of_a_call_are_text(tmp_path: Path) -> None:
    call = {"name": "write", "arguments": {"text": "<think>"}}
    for answer in (
        {"content": None, "mode": "off"},
        {"content": "<think>\nhm\n</think>", "mode": "on"},
        {"content": "", "reasoning": "hm", "mode": "on"},
    ):
        mode = answer.pop("mode")
        turn = {"role": "assistant", "tool_calls": [call], **answer}
        [record] = records(tmp_path, {"messages": [TURNS[0], turn]})
        assert record.mode == mode


def test_answers_of_weight_0_are_not_learnt_and_nothing_stands_after_the_last_that_is(
    tmp_path: Path,
) -> None:
    def weighted(*weights: object) -> list[dict]:
        answers = [{**TURNS[1], "weight": weight} for weight in weights]
        return [turn for answer in answers for turn in (TURNS[0], answer)]

    [record] = records(tmp_path, {"messages": weighted(0, 1, None)})
    assert (len(record.messages), record.unlearnt) == (6, {1})
    [record] = records(tmp_path, {"messages": weighted(0.0, 1.0, 0)})
    assert (len(record.messages), record.unlearnt) == (4, {1, 5})
    with pytest.raises(ValueError, match="line 1: every answer has weight 0, so nothing is learnt"):
        records(tmp_path, {"messages": weighted(0, 0)})
    for weight in (0.5, 2, -1, "0", [], {}):
        with pytest.raises(ValueError, match=r"messages\[1\]: weight is .*; write 1, or 0"):
            records(tmp_path, {"messages": weighted(weight)})


@pytest.mark.parametrize("name", ["weight", "loss", "train"])
@pytest.mark.parametrize("no", [0, False, 0.0])
def test_what_is_not_to_be_learnt_by_any_name(tmp_path: Path, name: str, no: object) -> None:
    asked, answer = {"from": "human", "value": "?"}, {"from": "gpt", "value": "2"}
    turns = [{**asked, name: no}, {**answer, name: no}, asked, {**answer, name: 1 - bool(no)}]
    [record] = records(tmp_path, {"conversations": turns})
    assert (len(record.messages), record.unlearnt) == (4, {0, 1})
    with pytest.raises(ValueError, match="line 1: every answer has weight 0, so nothing is learnt"):
        records(tmp_path, {"conversations": turns[:2]})
    with pytest.raises(ValueError, match=r"messages\[0\]: weight 1 on the user's turn; only answ"):
        records(tmp_path, {"conversations": [{**asked, name: True}, answer]})
    for weight in (0.5, "false", "no", [], {}):
        with pytest.raises(ValueError, match=rf"messages\[1\]: {name} is .*; write 1, or 0"):
            records(tmp_path, {"conversations": [asked, {**answer, name: weight}]})
    if name != "weight":
        with pytest.raises(ValueError, match=f"weight and {name} are both there and disagree"):
            records(tmp_path, {"conversations": [asked, {**answer, name: no, "weight": 1}]})


def test_a_row_of_weight_0_teaches_nothing(tmp_path: Path) -> None:
    for made in ({"messages": TURNS}, {"prompt": "?", "completion": "2"}, {"conversations": TURNS}):
        assert records(tmp_path, {**made, "weight": 1.0}) == records(tmp_path, made)
        for weight in (0, 0.0, False):
            with pytest.raises(ValueError, match="line 1: every answer has weight 0, so nothing"):
                records(tmp_path, {**made, "weight": weight})
        for weight in (0.5, "0", []):
            with pytest.raises(ValueError, match=r"line 1: weight is .*; write 1, or 0"):
                records(tmp_path, {**made, "weight": weight})


USER = TURNS[0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"messages": TURNS, "conversations": [USER, {**TURNS[1], "content": "3"}]}, "disagree"),
        ({"messages": TURNS, "prompt": "Hm?", "completion": "2"}, "are both there and disagree"),
        ({"messages": [{"role": "system", "content": "a"}, *TURNS], "system": "b"}, "disagree"),
        ({"messages": [USER, {**TURNS[1], "reasoning": "a", "thinking": "b"}]}, "both there and"),
        ({"messages": [USER, {"role": "assistant", "content": ON, "reasoning": "x"}]}, "disagree"),
        ({"messages": [{**USER, "from": "gpt"}, TURNS[1]]}, "role and from are both there and"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, TURNS[1]]},
            r"messages\[0\]: content has a part of type 'image_url': only text is read",
        ),
        ({"messages": [{"role": "user", "content": ["a"]}, TURNS[1]]}, "a part of type 'str'"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "content is None"),
        ({"messages": [USER, {"role": "assistant"}]}, "content is None"),
        ({"messages": [{**USER, "tool_calls": [CALL]}, TURNS[1]]}, "the user's turn calls tools"),
        ({"messages": [USER, {**TURNS[1], "tool_calls": [{"a": 1}]}]}, r"tool_calls\[0\] is"),
        ({"messages": [USER, {**TURNS[1], "tool_calls": 3}]}, "tool_calls is 3; write a list"),
        (
            {"messages": [USER, {"role": "assistant", "function_call": {"name": "", "a": 1}}]},
            r"tool_calls\[0\] is",
        ),
        (
            {"messages": [USER, {"from": "function_call", "value": "add(1)"}]},
            r"messages\[1\] is 'add\(1\)': not JSON",
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [{"name": "a", "arguments": 3}]},
                ]
            },
            "arguments is 3: give a JSON object",
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [{"name": "a", "arguments": "{NaN}"}]},
                ]
            },
            "arguments is '{NaN}': not JSON",
        ),
        ({"messages": TURNS, "tools": [{"type": "web"}]}, r"tools\[0\] is .*; write"),
        ({"messages": TURNS, "tools": "all of them"}, "tools is 'all of them': not JSON"),
        ({"messages": TURNS, "tools": {"name": "add"}}, "tools is .*; write a list"),
        ({"messages": "not json"}, "messages is 'not json': not JSON"),
        ({"messages": [3]}, r"messages\[0\] is 3; write an object"),
        ({"prompt": 3, "completion": "2"}, "prompt is 3; write a list"),
        ({"instruction": 3, "output": "2"}, "instruction and input are no text"),
        ({"question": None, "response": "2"}, "are no conversation"),
        ({"question": "?", "response": ["2"]}, "a part of type 'str'"),
        ({"input": "?", "output": "2", "reasoning": "off", "mode": "on"}, "but reasoning 'off'"),
        ({"messages": TURNS, "system": 3}, "system is 3; write it as text"),
        ({"messages": TURNS, "mode": 0}, "mode is 0; write"),
        ({"messages": [USER, {**TURNS[1], "reasoning": 3}]}, "its reasoning is 3; write it as"),
        (row("<think>\n1", "off"), "tags with reasoning off"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 1: .*{message}"):
        records(tmp_path, bad)


def test_a_message_does_not_repeat_what_is_long(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="characters") as caught:
        records(tmp_path, {"messages": [{"role": "x" * 9999, "content": "y"}]})
    assert len(str(caught.value)) < 500


def test_conversations_in_parquet(tmp_path: Path) -> None:
    """A column has all fields of all rows, those that are not there as null."""
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    rows = [
        {"messages": TURNS},
        {
            "messages": [USER, call, {"role": "tool", "content": "2"}, TURNS[1]],
            "tools": [TOOL["function"]],
        },
        {"messages": [USER, {**TURNS[1], "weight": 0}, *TURNS]},
    ]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    plain, called, weighted = read_records([str(path)])
    assert said(plain) == ASKED
    assert called.messages[1].tool_calls == CALLED
    assert weighted.unlearnt == {1}


NAMES = [
    *("messages", "conversations", "prompt", "completion", "response", "instruction", "input"),
    *("output", "question", "answer", "mode", "system", "system_prompt", "tools", "functions"),
    *("reasoning", "reasoning_content", "thinking", "role", "from", "content", "value", "weight"),
    *("tool_calls", "function_call", "function", "name", "arguments", "type", "text"),
]
TEXTS = st.sampled_from(
    [
        *("", "a", "on", "off", "user", "human", "gpt", "assistant", "system", "tool", "text"),
        *("function_call", "[]", '{"name": "f"}', "<think>", "<think>a</think>b", "1 #### 2"),
        *("detailed thinking on", "/no_think", '[{"role": "user", "content": "a"}]', "\ud83d"),
    ]
)
ANSWER = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXTS},
    optional={
        "weight": st.sampled_from([0, 1, 2]),
        "reasoning": TEXTS,
        "tool_calls": st.just([CALL]),
    },
)
QUESTION = st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": TEXTS})
CHATS = st.lists(st.tuples(QUESTION, ANSWER), min_size=1, max_size=3).map(
    lambda pairs: [turn for pair in pairs for turn in pair]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.just(0.5) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | TEXTS, inner, max_size=4)
    ),
    max_leaves=8,
)
BESIDE = dict.fromkeys(NAMES, CHATS | TEXTS | ANYTHING)
ROWS = st.one_of(
    st.fixed_dictionaries({}, optional=BESIDE),
    st.fixed_dictionaries({"messages": CHATS}, optional={"mode": TEXTS, "system": TEXTS}),
    st.fixed_dictionaries({"prompt": TEXTS | CHATS, "completion": TEXTS | CHATS}),
    st.fixed_dictionaries({"instruction": TEXTS, "output": TEXTS}, optional={"thinking": TEXTS}),
)


@given(ROWS, st.sampled_from(TOGGLES))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_any_row_is_a_record_or_a_value_error_with_its_line(row: dict, toggle: Toggle) -> None:
    fault, found = None, []
    try:
        found = list(records_of(parse_json(json.dumps(row)), "a.jsonl, line 7", toggle))
    except LoneSurrogate:
        pass  # the file's reader tells its line
    except ValueError as error:
        fault = str(error)
    assert fault is None or (fault.startswith("a.jsonl, line 7: ") and len(fault) < 800)
    for record in found:
        assert record.messages[-1].role == "assistant"
        assert len(record.messages) - 1 not in record.unlearnt
        assert record.mode in ("on", "off")
        called = [call.arguments for m in record.messages for call in m.tool_calls]
        json.dumps([record.tools, called])
