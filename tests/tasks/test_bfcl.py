"""BFCL's files as problems, and refused where they are not as published."""

import json
from pathlib import Path
from typing import Any

import pytest

from fretsaw.grade.grader import grade_batch
from fretsaw.tasks import bfcl
from fretsaw.tasks.problem import Problem

FUNCTION = {
    "name": "f",
    "parameters": {"type": "dict", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}
ROW = {
    "id": "simple_python_0",
    "question": [[{"role": "user", "content": "Do it with 1."}]],
    "function": [FUNCTION],
}


def write(folder: Path, category: str, row: dict[str, Any], calls: Any = None) -> Path:
    path = folder / f"BFCL_v4_{category}.json"
    path.write_text(f"{json.dumps(row)}\n")
    if calls is not None:
        (folder / "possible_answer").mkdir(exist_ok=True)
        answer = json.dumps({"id": row["id"], "ground_truth": calls})
        (folder / "possible_answer" / path.name).write_text(f"{answer}\n")
    return path


def is_right(problem: Problem, *answers: str) -> list[bool]:
    pairs = [(answer, problem.expected) for answer in answers]
    return [bool(grade.score) for grade in grade_batch(problem.grader, pairs)]


def test_a_row_has_its_calls_or_asks_for_some_or_none(tmp_path: Path) -> None:
    call, refusal = "<TOOLCALL>[f(a=1)]</TOOLCALL>", "No function fits."
    (problem,) = bfcl.read(write(tmp_path, "simple_python", ROW, [{"f": {"a": [1]}}]))
    assert is_right(problem, call, "f(a=2)", refusal) == [True, False, False]
    assert '<AVAILABLE_TOOLS>[{"name": "f"' in problem.messages[0].content
    assert problem.messages[0].content.endswith("</AVAILABLE_TOOLS>\nDo it with 1.")
    (problem,) = bfcl.read(write(tmp_path, "live_relevance", ROW))
    assert is_right(problem, call, refusal) == [True, False]
    (problem,) = bfcl.read(write(tmp_path, "irrelevance", ROW))
    assert is_right(problem, call, refusal) == [False, True]


def test_a_system_text_stays_the_first_turn(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *ROW["question"][0]]
    (problem,) = bfcl.read(write(tmp_path, "irrelevance", ROW | {"question": [turns]}))
    assert [message.role for message in problem.messages] == ["system", "user"]
    assert problem.messages[0].content == "Be brief."


def test_files_that_are_not_as_published_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"possible_answer.*no such file"):
        bfcl.read(write(tmp_path, "multiple", ROW))
    with pytest.raises(ValueError, match=r"line 1: calls: .*a function's name"):
        bfcl.read(write(tmp_path, "simple_python", ROW, [{"g": {"a": [1]}}]))
    turns = ROW | {"question": [*ROW["question"], *ROW["question"]]}
    with pytest.raises(ValueError, match="line 1: question has not one turn"):
        bfcl.read(write(tmp_path, "multi_turn_base", turns, [{"f": {"a": [1]}}]))
    with pytest.raises(ValueError, match="line 1: no field function"):
        bfcl.read(write(tmp_path, "irrelevance", {"id": "a", "question": ROW["question"]}))
    path = tmp_path / "BFCL_v4_irrelevance.json"
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1: no object"):
        bfcl.read(path)


def test_every_category_of_one_turn_in_python_is_read() -> None:
    package = pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23")
    folder = Path(str(package.__file__)).parent / "data"
    counts = [
        len(bfcl.read(folder / f"BFCL_v4_{category}.json"))
        for category in (
            *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"),
            *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
            *("live_irrelevance", "live_relevance"),
        )
    ]
    assert counts == [400, 200, 200, 200, 240, 258, 1053, 16, 24, 884, 16]
