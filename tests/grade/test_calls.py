"""Function calls as text, and whether they are those expected."""

import pytest

from fretsaw.chat.tools import ToolCall, calls_text
from fretsaw.grade.call_text import MAX_CHARACTERS, NotCalls, read_calls
from fretsaw.grade.calls import grade_calls
from fretsaw.grade.grader import GRADERS

WEATHER = {
    "name": "weather.get",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "above": {"type": "float"},
            "hours": {"type": "array", "items": {"type": "integer"}},
            "where": {"type": "dict"},
            "points": {"type": "array", "items": {"type": "dict"}},
        },
        "required": ["city"],
    },
}
POSSIBLE = {
    "city": ["New York", "NYC"],
    "days": [3, ""],
    "above": [2.0, ""],
    "hours": [[1, 2], ""],
    "where": [{"country": ["US", "USA"], "zone": ["east", ""]}, ""],
    "points": [[{"x": [1]}, {"x": [2]}], ""],
}
EXPECTED = {"calls": [{"weather.get": POSSIBLE}], "functions": [WEATHER]}


@pytest.mark.parametrize(
    "text",
    [
        "<TOOLCALL>[f(a=1, b='x')]</TOOLCALL>",
        '<TOOLCALL>[{"name": "f", "arguments": {"a": 1, "b": "x"}}]</TOOLCALL>',
        'I call:\n<TOOLCALL>[f(a=1, b="x")]</TOOLCALL>',
        "[f(a=1, b='x')]",
        "f(a=1, b='x')",
        "```python\n[f(a=1, b='x')]\n```",
        '{"name": "f", "arguments": {"a": 1, "b": "x"}}',
        '[{"id": "c1", "type": "function", '
        '"function": {"name": "f", "arguments": "{\\"a\\": 1, \\"b\\": \\"x\\"}"}}]',
        '{"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "b": "x"}}}]}',
        calls_text([ToolCall("f", {"a": 1, "b": "x"})]),
    ],
)
def test_every_way_to_write_a_call_is_read(text: str) -> None:
    assert read_calls(text) == [ToolCall("f", {"a": 1, "b": "x"})]


def test_values_of_python_are_read_and_never_evaluated() -> None:
    text = "a.b(x=-2, y=[1, (2, 3)], z={'k': None}, n=name, s=6 / 4, c=g(1), d=h(k=1), i=v[0])"
    assert read_calls(text) == [
        ToolCall(
            "a.b",
            {"x": -2, "y": [1, (2, 3)], "z": {"k": None}, "n": "name", "s": 1.5}
            | {"c": "g(1)", "d": {"h": {"k": 1}}, "i": "v[0]"},
        )
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I can't help with that.",
        "[f(a=1)",
        "<TOOLCALL>[f(a=1)",
        "[1, 2]",
        "f(1)",
        "f(a=1, a=2)",
        "f(**{'a': 1})",
        "(lambda: f)(a=1)",
        "f(a=lambda: 1)",
        "f(a=2**10**10)",
        "f(a=1/0)",
        '[{"name": "f"}]',
        '[{"name": "f", "arguments": "{"}]',
        '[{"name": "f", "arguments": [1]}]',
        "f(a=" + "[" * 100 + "]" * 100 + ")",
        "f(a=" + "-" * 50_000 + "1)",
        "f(a=" + "1+" * 2_000 + "1)",
        "f(a=" + "9" * 20_000 + ")",
        '[{"name": "f", "arguments": {"a": ' + "[" * 90_000,
        "f(a='" + "x" * MAX_CHARACTERS + "')",
        "f(a='\0')",
    ],
    ids=lambda text: text[:24],
)
def test_what_makes_no_calls_is_refused_in_words(text: str) -> None:
    with pytest.raises(NotCalls, match=r"\w"):
        read_calls(text)


@pytest.mark.parametrize(
    ("call", "score"),
    [
        ("weather.get(city='New York')", 1),
        ("weather.get(city='new-york', days=3)", 1),
        ("weather_get(city='NYC')", 1),
        ("weather.get(city='NYC', above=2)", 1),
        ("weather.get(city='NYC', hours=[1, 2])", 1),
        ("weather.get(city='NYC', hours=[])", 1),
        ("weather.get(city='NYC', where={'country': 'usa'})", 1),
        ("weather.get(city='NYC', points=[{'x': 1}, {'x': 2}])", 1),
        ("weather.get(city='Boston')", 0),
        ("weather.get(days=3)", 0),
        ("weather.get(city='NYC', days=3.0)", 0),
        ("weather.get(city='NYC', days='3')", 0),
        ("weather.get(city='NYC', hours=[2, 1])", 0),
        ("weather.get(city='NYC', hours=['1', '2'])", 0),
        ("weather.get(city='NYC', where={'zone': 'east'})", 0),
        ("weather.get(city='NYC', where={'country': 'US', 'state': 'NY'})", 0),
        ("weather.get(city='NYC', points=[{'x': 2}, {'x': 1}])", 0),
        ("weather.get(city='NYC', humid=True)", 0),
        ("weather.of(city='NYC')", 0),
        ("[weather.get(city='NYC'), weather.get(city='NYC')]", 0),
        ("I can't.", 0),
    ],
)
def test_one_call_is_compared_with_its_possible_values(call: str, score: float) -> None:
    assert grade_calls(call, EXPECTED).score == score


def test_parallel_calls_match_in_any_order() -> None:
    calls = [{"weather.get": {"city": [city]}} for city in ("Oslo", "Rome")]
    expected = {"calls": calls, "functions": [WEATHER]}
    assert grade_calls("[weather.get(city='Rome'), weather.get(city='Oslo')]", expected).score == 1
    twice = grade_calls("[weather.get(city='Rome'), weather.get(city='Rome')]", expected)
    assert (twice.score, twice.evidence) == (
        0.0,
        "no call is weather.get as wanted; weather.get: city is 'Rome'",
    )


def test_relevance_asks_for_some_call_and_irrelevance_for_none() -> None:
    some, none = ({"calls": calls, "functions": [WEATHER]} for calls in ("any", []))
    for answer, scores in (
        ("weather.get(city='Oslo')", (1, 0)),
        ("No function fits.", (0, 1)),
        ("[]", (0, 1)),
    ):
        assert (grade_calls(answer, some).score, grade_calls(answer, none).score) == scores


@pytest.mark.parametrize(
    "wrong",
    [
        {"calls": "none", "functions": [WEATHER]},
        {"calls": [{"time.get": {}}], "functions": [WEATHER]},
        {"calls": [{"weather.get": {"city": "Oslo"}}], "functions": [WEATHER]},
        {"calls": [], "functions": [{"name": "f"}]},
        {"calls": [], "functions": [{"name": "f", "parameters": {"properties": {"a": {}}}}]},
    ],
)
def test_calls_that_cannot_be_compared_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"calls|function"):
        GRADERS["calls"].check(wrong)
