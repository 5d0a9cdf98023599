"""Problems, their grades, and the user's own files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fretsaw.chat.control_tokens import add_control_tokens
from fretsaw.chat.message import Message
from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.reasoning import MODES, Mode, with_reasoning
from fretsaw.chat.toggle import Toggle
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.grade.grader import GRADERS, Grader
from fretsaw.tasks.problem import Problem, read_problems
from fretsaw.tasks.prompt import GradedAnswer, Prompt, chat_prompt, grade_answers
from fretsaw.tasks.task import TASKS, drawn_with, load_problems

PROBLEM = Problem("0", (Message("user", "1 + 1?"),), {"answer": "2"})
USER = {"role": "user", "content": "1 + 1?"}
ANSWER = {"role": "assistant", "content": "2"}


def grade(text: str, mode: Mode, *, opening: str = "", is_finished: bool = True) -> GradedAnswer:
    prompt = Prompt(PROBLEM, mode, (1,), opening)
    return grade_answers([prompt], [text], [is_finished])[0]


@pytest.mark.parametrize(
    ("text", "mode", "is_finished", "reward"),
    [
        (with_reasoning("1 + 1 = 2", "2"), "on", True, 1.0),
        (with_reasoning("1 + 1 = 2", "2"), "on", False, 0.0),  # cut
        (with_reasoning("1 + 1 = 3", "3"), "on", True, 0.0),  # wrong
        ("2", "on", True, 0.0),  # right, but not in the format
        ("2", "off", True, 1.0),
        (with_reasoning("1 + 1 = 2", "2"), "off", True, 0.0),
        ("<think>\n2", "on", True, 0.0),  # never closed: no answer
    ],
)
def test_reward_is_correct_times_format_times_finished(text, mode, is_finished, reward):
    assert grade(text, mode, is_finished=is_finished).reward == reward


def test_a_verdict_keeps_its_evidence():
    verdict = grade("maybe 3", "off")
    assert (verdict.correct, verdict.found, verdict.expected) == (0.0, "3", "2")
    assert grade("2", "on").fault == "does not start with <think>"


def test_what_a_prompt_has_written_belongs_to_the_answer():
    assert grade("1 + 1 = 2\n</think>\n\n2", "on", opening="<think>\n").reward == 1.0
    assert grade("2", "on", opening="<think>\n").reward == 0.0


def test_each_grader_gets_its_answers_and_their_order_stays():
    words = Problem("1", (Message("user", "Red?"),), {"answer": "yes"}, grader="exact")
    prompts = [Prompt(problem, "off", (1,)) for problem in (PROBLEM, words, PROBLEM, words)]
    graded = grade_answers(prompts, ["2", "no", "3", "Yes."], [True] * 4)
    assert [one.correct for one in graded] == [1.0, 0.0, 0.0, 1.0]
    assert [one.expected for one in graded] == ["2", "yes", "2", "yes"]


def test_a_grader_may_read_more_than_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    row = Grader(summary="", function="fretsaw.grade.text:grade_exact", keys=("answer", "unit"))
    monkeypatch.setitem(GRADERS, "measure", row)
    path = tmp_path / "mine.jsonl"
    given = {"prompt": "How far?", "grader": "measure", "expected": {"answer": "3", "unit": "m"}}
    path.write_text(json.dumps(given))
    assert read_problems(path)[0].expected == {"answer": "3", "unit": "m"}
    path.write_text(json.dumps(given | {"expected": {"answer": "3"}}))
    with pytest.raises(ValueError, match="expected has no 'unit'; its grader reads answer, unit"):
        read_problems(path)


def test_ones_own_problems(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "1 + 1?", "answer": 2},
        {"prompt": "Name a fruit.", "answer": "apple", "grader": "contains", "kind": "words"},
        {"messages": [{"role": "user", "content": "Red?"}], "answer": "yes", "grader": "exact"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    number, words, exact = load_problems("", 0, seed=0, file=path)
    assert (number.answer, number.grader, number.text) == ("2", "number", "1 + 1?")
    assert (words.kind, words.grader) == ("words", "contains")
    assert exact.messages == (Message("user", "Red?"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1 + 1?"}, "answer is None; write"),
        ({"prompt": "1 + 1?", "answer": " "}, "answer is ' '; write"),
        ({"prompt": "1 + 1?", "answer": "two"}, "'two': no number; use another grader"),
        (
            {"prompt": "?", "answer": "2", "grader": "magic"},
            "grader is 'magic'; choose one of",
        ),
        ({"prompt": "?", "answer": "2", "grader": ["number"]}, "grader is ..number..; choose one"),
        ({"prompt": "?", "answer": "2", "grader": None}, "grader is None; choose one of"),
        ({"prompt": "?", "answer": "2", "grader": {}}, "grader is {}; choose one of"),
        ({"prompt": "?", "answer": "2", "grader": 3}, "grader is 3; choose one of"),
        ({"prompt": "?", "answer": "2", "grader": ""}, "grader is ''; choose one of"),
        ({"prompt": "?", "answer": None}, "answer is None; write"),
        ({"prompt": "?", "answer": ["2"]}, r"answer is \['2'\]; write"),
        ({"prompt": "?", "answer": True}, "answer is True; write"),
        ({"prompt": "?", "answer": float("nan")}, "NaN is no JSON number"),
        ({"prompt": "?", "answer": float("inf"), "grader": "exact"}, "Infinity is no JSON number"),
        (
            {"prompt": "?", "answer": "2", "grader": "number", "expected": [2], "id": 1.5},
            "id is 1.5",
        ),
        ({"prompt": "?", "answer": "2", "kind": ["a"]}, r"kind is \['a'\]; write text"),
        ({"prompt": "?", "answer": "2", "id": True}, "id is True; write text"),
        (
            {"prompt": "?", "answer": "2", "id": "0"},
            "id is '0', as on line 1; give each row its own",
        ),
        ({"prompt": "?", "answer": "2", "id": 0}, "id is '0', as on line 1; give each row its own"),
        ({"prompt": ["?"], "answer": "2"}, r"messages\[0\] is '\?'; write"),
        ({"messages": [], "answer": "2"}, r"messages is \[\]; write"),
        ({"messages": "1 + 1?", "answer": "2"}, "messages is '1 . 1.': not JSON"),
        ({"messages": [{"role": "user", "content": " "}], "answer": "2"}, "the question is blank"),
        (
            {"prompt": "?", "answer": "A", "grader": "contains", "choices": ["B"]},
            "the answer 'A' is not among them",
        ),
        ({"prompt": "?", "answer": ".", "grader": "contains"}, "nothing to look for"),
        ({"prompt": " ", "answer": "2"}, "prompt is ' '; write"),
        (
            {"messages": [{"role": "assistant", "content": "2"}], "answer": "2"},
            "comes first; an answer",
        ),
        (
            {"messages": [{"role": "tool", "content": "2"}, USER], "answer": "2"},
            r"messages\[0\]: the tool's turn comes first",
        ),
        ({"messages": [USER, ANSWER], "answer": "2"}, "not the user's"),
        ({"messages": [USER, ANSWER, ANSWER, USER], "answer": "2"}, "the assistant's turn comes"),
        ({"prompt": "2 + 2?", "messages": [USER], "answer": "2"}, "prompt and messages are both"),
    ],
)
def test_rows_that_cannot_be_graded_are_refused_with_their_line(tmp_path, row, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=rf"mine\.jsonl, line 2: .*{message}"):
        read_problems(path)


def put(path: Path, system: str, toggle: Toggle, tokenizer: Tokenizer) -> None:
    row = {"messages": [{"role": "system", "content": system}, USER], "answer": "2"}
    path.write_text(json.dumps(row))
    for mode in MODES:
        chat_prompt(NemotronFormat(tokenizer, toggle), read_problems(path)[0], mode)


def test_a_problem_says_no_mode_by_the_toggle_of_its_model(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["one two three"] * 3, vocab_size=280)
    add_control_tokens(tokenizer)
    line, flag = "detailed thinking off", "Be brief. /think"
    words: dict[Toggle, tuple[str, str]] = {"v1": (line, flag), "v1.5": (flag, line)}
    for toggle, (asks, own) in words.items():
        with pytest.raises(ValueError, match=r"mine\.jsonl, line 1: .* a problem is put in both"):
            put(tmp_path / "mine.jsonl", asks, toggle, tokenizer)
        put(tmp_path / "mine.jsonl", own, toggle, tokenizer)
        for text in (line, flag):
            put(tmp_path / "mine.jsonl", text, "none", tokenizer)


def test_a_prompt_and_messages_that_agree(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    system = {"role": "system", "content": "Be brief."}
    for row in (
        {"prompt": "1 + 1?", "messages": [USER]},
        {"prompt": "1 + 1?", "messages": [system, USER]},
        {"prompt": [system, USER]},
        {"prompt": "", "messages": [USER]},
        {"prompt": "1 + 1?", "messages": []},
    ):
        path.write_text(json.dumps({**row, "answer": "2"}))
        [problem] = read_problems(path)
        assert problem.messages[-1] == Message("user", "1 + 1?")


def test_a_row_may_state_its_choices(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    row = {"prompt": "Which?", "answer": "red", "grader": "contains", "kind": None}
    beside, within = {"choices": ["red", "blue"]}, {"expected": {"choices": ["red", "blue"]}}
    path.write_text("\n".join(json.dumps(row | more) for more in ({}, beside, within)))
    one, *given = read_problems(path)
    assert (one.expected, one.kind) == ({"answer": "red"}, "")
    for problem in given:
        assert problem.expected == {"answer": "red", "choices": ["red", "blue"]}
        graded = grade_answers([Prompt(problem, "off", (1,))], ["red or blue"], [True])
        assert graded[0].correct == 0.0


def test_a_task_by_name():
    kinds = {p.kind for p in load_problems("word_problems:steps=6", 10, seed=0)}
    assert kinds == {"6 steps"}
    wide = load_problems("word_problems:steps=1-3,max_value=60,phrasing=both", 200, seed=0)
    assert {p.kind for p in wide} == {"1 step", "2 steps", "3 steps"}
    assert max(int(p.answer) for p in wide) > 30


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("chess", "task 'chess': unknown; use word_problems"),
        ("word_problems:depth=3", "no option 'depth'; it has steps, max_value, phrasing"),
        ("word_problems:steps=many", "steps is a number or a range"),
        ("word_problems:phrasing=new", "phrasing is one of train, heldout, both"),
        ("word_problems:steps=0", "of one step or more"),
        ("word_problems:max_value=16", "max_value 16: some values .* give 17 or more"),
    ],
)
def test_a_task_that_is_none(task, message):
    with pytest.raises(ValueError, match=message):
        load_problems(task, 4, seed=0)


def test_a_task_is_drawn_as_it_says_where_nothing_else_is_said():
    own = TASKS["word_problems"].sampling["on"]
    nothing = {"temperature": None, "top_p": None, "max_tokens": 0}
    assert drawn_with(own, **nothing) == own
    asked = drawn_with(own, **{**nothing, "temperature": 0.6, "max_tokens": 32})
    assert asked == replace(own, temperature=0.6, max_tokens=32)


def test_a_column_expected_is_read_by_graders_of_more_than_an_answer_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "1 + 1?", "answer": "2", "expected": "2"}))
    assert read_problems(path)[0].expected == {"answer": "2"}
    row = Grader(summary="", function="fretsaw.grade.text:grade_exact", keys=("unit",))
    monkeypatch.setitem(GRADERS, "measure", row)
    path.write_text(json.dumps({"prompt": "How far?", "grader": "measure", "expected": 3}))
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 1: expected is 3; write an object"):
        read_problems(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (r'{"prompt": "a \ud83d b", "answer": "2"}', "line 2: prompt holds half of a surrogate"),
        ('{"prompt": "a", "answer": ' + "9" * 5000 + "}", "line 2: a number of 5000 digits"),
        ("[" * 100_000, "line 2: nested too deeply"),
        ('{"prompt": "a", "answer": NaN}', "line 2: NaN is no JSON number"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "answer": "2"}\n' + line)
    with pytest.raises(ValueError, match=message):
        read_problems(path)
