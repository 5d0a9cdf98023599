"""Verdicts by position, strict and loose, their evidence, and what is refused."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fretsaw.grade.grader import GRADERS, Grade, grade_batch
from fretsaw.grade.instructions.grade import (
    Verdict,
    differences,
    grade_instructions,
    judge,
    read_verdicts,
    variants,
    write_verdicts,
)
from fretsaw.grade.instructions.kinds import INSTRUCTIONS

TWO = {
    "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
    "kwargs": [{"num_words": None}, {"end_phrase": "Bye.", "relation": None}],
    "prompt": "Say bye.",
}


def test_verdicts_stand_in_the_order_of_the_instructions() -> None:
    assert grade_instructions("Well. Bye.", TWO).score == 1.0
    grade = grade_instructions("Well, no.", TWO)
    assert grade.score == 0.0
    lines = grade.evidence.splitlines()
    assert lines[0] == "0 punctuation:no_comma strict=fail loose=fail 1 commas"
    assert lines[1] == "1 startend:end_checker strict=fail loose=fail ends Well, no."
    swapped = {name: TWO[name][::-1] for name in ("instruction_id_list", "kwargs")}
    assert [one.strict for one in judge("Well, Bye.", TWO)] == [False, True]
    assert [one.strict for one in judge("Well, Bye.", swapped)] == [True, False]


def test_the_loose_verdict_forgives_a_line_and_asterisks() -> None:
    for answer in (
        "Sure, here:\nWell. Bye.",
        "Well. Bye.\nHope, that helps!",
        "Sure,\nWell. Bye.\nSo, ok",
        "Sure,\nWell. *B*ye.*\nSo, ok",
    ):
        assert [one.loose for one in judge(answer, TWO)] == [True, True]
        assert not all(one.strict for one in judge(answer, TWO))
        assert grade_instructions(answer, TWO).score == 0.0
        assert grade_instructions(answer, {**TWO, "verdict": "loose"}).score == 1.0
    assert [one.loose for one in judge("One,\nTwo,\nBye.\nThree", TWO)] == [False, True]


def test_the_variants_are_eight_at_most() -> None:
    assert variants("a*\nb\nc") == ["a*\nb\nc", "b\nc", "a*\nb", "b", "a\nb\nc", "a\nb"]
    assert variants("a") == ["a"]
    assert variants(" \n*") == [" \n*", "*"]


@pytest.mark.parametrize("blank", ["", " ", "\n\t\n", "\u3000"])
def test_a_blank_answer_follows_nothing(blank: str) -> None:
    for rules in ("repaired", "reference"):
        verdicts = judge(blank, {**TWO, "rules": rules})
        assert verdicts == [Verdict(id, False, False, "blank") for id in TWO["instruction_id_list"]]


def one(id: str, **kwargs: Any) -> dict[str, Any]:
    return {"instruction_id_list": [id], "kwargs": [kwargs]}


WORDS = "length_constraints:number_words"


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (one("keywords:rhyme"), "instruction 'keywords:rhyme': unknown; use one of keywords:"),
        (one("title"), "instruction 'title': unknown"),
        ({"instruction_id_list": [3], "kwargs": [{}]}, "instruction 3: unknown"),
        ({"instruction_id_list": [], "kwargs": []}, r"instruction_id_list is \[\]; write a list"),
        ({"instruction_id_list": "a", "kwargs": [{}]}, "instruction_id_list is 'a'; write a list"),
        ({"instruction_id_list": None, "kwargs": [{}]}, "instruction_id_list is None"),
        (one(WORDS) | {"kwargs": []}, r"kwargs is \[\]; write a list of 1 objects"),
        (one(WORDS) | {"kwargs": {}}, r"kwargs is \{\}; write a list"),
        (one(WORDS) | {"kwargs": [3]}, "its kwargs are 3; write an object"),
        (one(WORDS, num_words=3), "relation is missing; it has num_words, relation"),
        (one(WORDS, num_words=3, relation=None), "relation is missing"),
        (one(WORDS, num_words=3, relation="at most"), "relation is 'at most'; write one of less"),
        (one(WORDS, num_words=3, relation=["at least"]), "relation is .'at least'.; write one of"),
        (one(WORDS, num_words="3", relation="at least"), "num_words is '3'; write a whole number"),
        (one(WORDS, num_words=3.0, relation="at least"), "num_words is 3.0; write a whole number"),
        (one(WORDS, num_words=True, relation="at least"), "num_words is True; write a whole"),
        (one(WORDS, num_words=-1, relation="at least"), "num_words is -1; write a whole number, 0"),
        (one(WORDS, num_words=3, relation="at least", letter="a"), "no argument 'letter'; it has"),
        (one("punctuation:no_comma", letter="a"), "no argument 'letter'; it has none"),
        (one("length_constraints:number_paragraphs", num_paragraphs=0), "is 0; .* number, 1"),
        (one("keywords:existence", keywords="cat"), "keywords is 'cat'; write a list of words"),
        (one("keywords:existence", keywords=[]), r"keywords is \[\]; write a list of words"),
        (one("keywords:existence", keywords=["a", " "]), "write a list of words"),
        (one("keywords:forbidden_words", forbidden_words=[3]), "write a list of words"),
        (one("language:response_language", language="xx"), "language is 'xx'; write a code"),
        (one("language:response_language", language=["en"]), "write a code"),
        (one("startend:end_checker", end_phrase=" "), "end_phrase is ' '; write text"),
        (one("startend:end_checker", end_phrase=3), "end_phrase is 3; write text"),
        (
            one("keywords:letter_frequency", letter="ab", let_frequency=1, let_relation="at least"),
            "letter is 'ab'; write one character",
        ),
        (one("punctuation:no_comma") | {"rules": "lax"}, "rules is 'lax'; write one of repaired"),
        (one("punctuation:no_comma") | {"verdict": "kind"}, "verdict is 'kind'; write strict or"),
        (
            one("keywords:existence", keywords=["(a+)+$"]) | {"rules": "reference"},
            "a regular expression to the reference; use the rules repaired",
        ),
    ],
)
@pytest.mark.parametrize("answer", ["", "A plain answer."])
def test_what_cannot_be_checked_is_refused(
    expected: dict[str, Any], message: str, answer: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grade_instructions(answer, expected)


def test_differences_of_the_rules_are_named() -> None:
    pairs = [
        ("I said: NaN", one("detectable_format:json_format")),
        ("NaN", one("detectable_format:json_format")),
        ("Well. **Bye.**", TWO),
    ]
    first, second = differences(pairs)
    assert (first.answer, first.position) == (1, 0)
    assert not first.repaired.strict
    assert first.reference.strict
    assert (second.answer, second.position) == (2, 1)
    assert str(second) == (
        "answer 2, 1 startend:end_checker: repaired strict=pass loose=pass (ends Well. **Bye.**), "
        "reference strict=fail loose=pass (ends Well. **Bye.**)"
    )


@given(
    st.lists(
        st.builds(
            Verdict, st.sampled_from(sorted(INSTRUCTIONS)), st.booleans(), st.booleans(), st.text()
        ),
        min_size=1,
    )
)
def test_evidence_is_read_back(verdicts: list[Verdict]) -> None:
    again = read_verdicts(write_verdicts(verdicts))
    assert [(v.id, v.strict, v.loose) for v in again] == [
        (v.id, v.strict, v.loose) for v in verdicts
    ]
    assert read_verdicts(write_verdicts(again)) == again


@pytest.mark.parametrize("text", ["", "1 a strict=pass loose=pass", "no grade within 2 s"])
def test_other_evidence_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no verdict 0 of an instruction"):
        read_verdicts(text)


EVERY = {
    "keywords": ["cat"],
    "keyword": "cat",
    "forbidden_words": ["cat"],
    "postscript_marker": "P.S.",
    "section_spliter": "Section",
    "prompt_to_repeat": "a",
    "end_phrase": "a",
    "first_word": "a",
    "letter": "a",
    "language": "en",
    "relation": "at least",
    "let_relation": "at least",
    "capital_relation": "at least",
}
HOSTILE = [
    *(unit * (1_000_000 // len(unit)) for unit in ("a", "A. ", "[", "<<", "*", "* ", "\n", " \n")),
    *(
        unit * (1_000_000 // len(unit))
        for unit in ("!", "p. ", "Section 1", "*\n", "-\n", "a@", '"')
    ),
    *(
        unit * (1_000_000 // len(unit))
        for unit in ("{", "é ", "😀", "\ud800", "\0", "P.P.S", "\r", "'")
    ),
    "[" + " " * 999_999,
    "<<" + " " * 999_990 + ">>",
    "*" + "a " * 499_999,
    "9" * 1_000_000,
    "a-" * 500_000,
]


@pytest.mark.timeout(240)
@pytest.mark.slow
@pytest.mark.parametrize("rules", ["repaired", "reference"])
def test_hostile_answers_are_graded_within_the_deadline(rules: str) -> None:
    """A check whose time grew with the square of a megabyte would take hours."""
    asked = [
        (id, {name: EVERY.get(name, 1) for name in row.kwargs}) for id, row in INSTRUCTIONS.items()
    ]
    expected = {
        "instruction_id_list": [id for id, _ in asked],
        "kwargs": [kwargs for _, kwargs in asked],
        "rules": rules,
    }
    for answer in HOSTILE:
        assert len(judge(answer, expected)) == 25


def test_the_table_has_it_and_imports_nothing_for_it() -> None:
    assert grade_batch("instructions", [("Well. Bye.", TWO), ("no", TWO)])[0] == Grade(
        1.0,
        "0 punctuation:no_comma strict=pass loose=pass 0 commas\n"
        "1 startend:end_checker strict=pass loose=pass ends Well. Bye.",
    )
    assert GRADERS["instructions"].keys == ("instruction_id_list", "kwargs")
    code = "import json, sys, fretsaw.grade.grader; print(json.dumps(list(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"langdetect", "torch", "fretsaw.grade.instructions"} & set(json.loads(ran.stdout))
