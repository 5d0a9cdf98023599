"""JSON from outside: a value that can be walked and written again, or one ValueError."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fretsaw.stage.json_text import MAX_DEPTH, NotJson, parse_json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r'{"text": "a \ud83d b"}', "^text holds half of a surrogate pair"),
        (r'{"a": [{"b": ["x", "\uDC00"]}]}', r"^a\[0\]\.b\[1\] holds half"),
        (r'{"a": {"\ud800": 1}}', r"^a\.'\\ud800' holds half"),
        (r'"\udc00\ud800"', "^the text holds half"),
        ("[" * 100_000, "nested too deeply, over 200 levels; flatten it"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("[" * 300 + "]" * 300, "nested too deeply"),
        ("9" * 5000, "a number of 5000 digits is too long"),
        ("-" + "9" * 5000, "a number of 5001 digits is too long"),
        ("[1e999]", "1e999 is too large for a number"),
        ("[NaN]", "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' stands twice"),
    ],
)
def test_what_is_beyond_the_rule_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert not isinstance(caught.value, NotJson)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["", "{", '{"a": "\x00"}', "\ufeff{}", "{} {}", "[1,]", "nan"])
def test_what_is_no_json_is_told_with_its_column(text: str) -> None:
    with pytest.raises(NotJson, match=r"not JSON .*column"):
        parse_json(text)


def test_what_is_within_the_rule_is_read() -> None:
    assert parse_json(r'{"a": "\ud83d\ude00 \u0000", "b": "\\ud83d"}') == {
        "a": "\U0001f600 \0",
        "b": r"\ud83d",
    }
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json('["' + "[" * 1000 + '"]')
    assert parse_json("9" * 4300) == 10**4300 - 1


PARTS = st.sampled_from([*'[]{},:"\\ \n1e-.', r"\ud83d", r"\ude00", "NaN", "true", "null", '"a":'])


@given(st.lists(PARTS | st.characters(codec="utf-8"), max_size=20).map("".join))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_text_is_a_value_that_can_be_written_or_a_value_error(text: str) -> None:
    try:
        value = parse_json(text)
    except ValueError as error:
        str(error).encode()
    else:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
