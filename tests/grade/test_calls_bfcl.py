"""Calls graded as BFCL's own checker grades them, on its rows and on mutated calls.

The checker imports every vendor's client for its table of models; that table alone is replaced.
"""

import importlib
import json
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fretsaw.grade.calls import grade_calls

CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple")
NAMES = {"java": "java", "js": "javascript"}
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")


@pytest.fixture(scope="module")
def bfcl() -> tuple[Path, Callable[[str, dict[str, Any]], bool]]:
    """The folder of BFCL's data, and its verdict on a text of calls for a row."""
    package = pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23")
    models = types.ModuleType("bfcl_eval.constants.model_config")
    plain = types.SimpleNamespace(underscore_to_dot=False)
    models.__dict__["MODEL_CONFIG_MAPPING"] = {"plain": plain}
    sys.modules[models.__name__] = models
    for language in ("java", "js"):  # parsed by tree-sitter, and of no row here
        parser = types.ModuleType(f"bfcl_eval.model_handler.parser.{language}_parser")
        parser.__dict__[f"parse_{NAMES[language]}_function_call"] = None
        sys.modules[parser.__name__] = parser
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    utils = importlib.import_module("bfcl_eval.model_handler.utils")
    python = importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON

    def is_right(text: str, row: dict[str, Any]) -> bool:
        try:
            made = utils.ast_parse(text)
        except Exception:  # whatever it raises is counted as no calls, as its runner does
            return False
        verdict = checker.ast_checker(
            row["function"], made, row["ground_truth"], python, row["category"], "plain"
        )
        return verdict["valid"]

    return Path(str(package.__file__)).parent / "data", is_right


def rows_of(folder: Path, category: str) -> list[dict[str, Any]]:
    name = f"BFCL_v4_{category}.json"
    asked, answers = (
        [json.loads(line) for line in (place / name).read_text().splitlines()]
        for place in (folder, folder / "possible_answer")
    )
    assert [row["id"] for row in asked] == [row["id"] for row in answers]
    return [a | b | {"category": category} for a, b in zip(asked, answers, strict=True)]


Call = tuple[str, dict[str, Any]]


def right_calls(row: dict[str, Any], draw: random.Random) -> list[Call]:
    """Return calls of possible values; those that may be left out are, half of the time."""
    calls = []
    for wanted in row["ground_truth"]:
        ((name, possible),) = wanted.items()
        arguments = {}
        for argument, values in possible.items():
            given = [value for value in values if value != ""]
            if given and ("" not in values or draw.random() < 0.5):
                arguments[argument] = draw_value(draw.choice(given), draw)
        calls.append((name, arguments))
    return calls


def draw_value(value: Any, draw: random.Random) -> Any:
    """Return a value with each key of a dictionary at one of its own possible values."""
    if isinstance(value, dict):
        given = {key: [one for one in values if one != ""] for key, values in value.items()}
        return {key: draw.choice(values) for key, values in given.items() if values}
    if isinstance(value, list):
        return [draw_value(one, draw) if isinstance(one, dict) else one for one in value]
    return value


def mutated_value(value: Any, draw: random.Random) -> Any:
    match value:
        case bool():
            return draw.choice([not value, str(value), int(value)])
        case int():
            return draw.choice([value + 1, float(value), str(value), [value], value + 0.5])
        case float():
            return draw.choice([int(value), value + 1, str(value), -value])
        case str():
            return draw.choice(
                [value.upper(), f"{value}.", f"{value}s", value.replace(" ", ""), [value], 3, ""]
            )
        case list():
            extra = value[:1] or ["x"]
            inner = [mutated_value(one, draw) for one in value]
            return draw.choice([value[::-1], value[1:], value + extra, tuple(value), [], inner])
        case dict():
            key = draw.choice([*value, "other"])
            changed = value | {key: mutated_value(value.get(key, 1), draw)}
            less = {k: v for k, v in value.items() if k != key}
            return draw.choice([changed, less, value | {"other": 1}, [value]])
        case _:
            return None


def mutated(calls: list[Call], draw: random.Random) -> list[Call]:
    place = draw.randrange(len(calls))
    name, arguments = calls[place]
    argument = draw.choice([*arguments, "other"])
    less = {key: value for key, value in arguments.items() if key != argument}
    changed = arguments | {argument: mutated_value(arguments.get(argument), draw)}
    by_kind = {
        "value": [(name, changed)],
        "again": [(name, changed)],
        "missing": [(name, less)],
        "unexpected": [(name, arguments | {"other": 1})],
        "renamed": [(f"{name}_2", arguments)],
        "no call": [],
        "twice": [(name, arguments), (name, arguments)],
    }
    kind = draw.choice(list(by_kind))
    rest = calls[:place] + by_kind[kind] + calls[place + 1 :]
    draw.shuffle(rest)
    return rest


def written(calls: list[Call]) -> str:
    return ", ".join(f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in calls)


@pytest.mark.parametrize("category", [*CATEGORIES, *LIVE])
def test_verdicts_are_those_of_bfcl(bfcl, category: str) -> None:
    folder, is_right = bfcl
    rows = rows_of(folder, category)
    if category in CATEGORIES:
        assert len(rows) == {"simple_python": 400}.get(category, 200)
    differing, verdicts = [], []
    for row in rows:
        expected = {"calls": row["ground_truth"], "functions": row["function"]}
        draw = random.Random(row["id"])
        right = right_calls(row, draw)
        tried = [right, *(mutated(right, draw) for _ in range(8))]
        for calls in tried:
            text = f"[{written(calls)}]"
            ours, theirs = bool(grade_calls(text, expected).score), is_right(text, row)
            verdicts.append(theirs)
            if ours != theirs:
                differing.append((row["id"], text, ours))
    assert differing == []
    assert sum(verdicts) >= len(rows)
    assert sum(verdicts) < 0.6 * len(verdicts)
