"""MBPP, HumanEval and LiveCodeBench: what is asked, and reference solutions against mutants."""

import ast
import base64
import gzip
import json
import pickle
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fretsaw.grade.code import grade_code
from fretsaw.sandbox.backend import choose_backend
from fretsaw.tasks import humaneval, livecodebench, mbpp
from fretsaw.tasks.problem import Problem

OPPOSITES: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.Mult},
    **{ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And},
}


@pytest.fixture
def _has_sandbox() -> None:
    try:
        choose_backend()
    except ValueError as error:
        pytest.skip(str(error))


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def emptied(source: str) -> str:
    """Return a program whose functions do nothing."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    return ast.unparse(tree)


def mutants(source: str) -> Iterator[str]:
    """Yield programs with one operator changed to its opposite."""
    for place, node in enumerate(ast.walk(ast.parse(source))):
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare):
            tree = ast.parse(source)
            changed: Any = list(ast.walk(tree))[place]
            operator = changed.ops[0] if isinstance(node, ast.Compare) else changed.op
            if type(operator) not in OPPOSITES:
                continue
            opposite = OPPOSITES[type(operator)]()
            if isinstance(node, ast.Compare):
                changed.ops[0] = opposite
            else:
                changed.op = opposite
            yield ast.unparse(tree)


# --- MBPP -----------------------------------------------------------------------------------------

MBPP = {
    "text": "Write a function to add.",
    "code": "def sum(a, b):\r\n  return a + b",
    "task_id": 7,
    "test_list": ["assert sum(1, 2) == 3"],
    "test_setup_code": "",
}


def test_an_mbpp_row(tmp_path: Path) -> None:
    (problem,) = mbpp.read(written(tmp_path / "a.jsonl", MBPP))
    question = problem.messages[0].content
    assert "test examples:\nWrite a function to add.\nassert sum(1, 2) == 3\nUse Python" in question
    assert problem.expected["entry_point"] == "sum"
    assert (problem.id, problem.grader) == ("7", "code")


def test_an_mbpp_row_of_the_sanitised_file(tmp_path: Path) -> None:
    row = {"prompt": "Add.", "code": MBPP["code"], "test_list": MBPP["test_list"]}
    path = written(tmp_path / "a.jsonl", row | {"test_imports": ["import math", "import re"]})
    assert mbpp.read(path)[0].expected["setup"] == "import math\nimport re"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_list": []}, "a.jsonl, line 1: test_list is \\[\\]; it is a list of texts"),
        ({"code": "def ("}, "is no Python; give the published file"),
        ({"text": 3}, "text is 3; it is text in the published file"),
    ],
)
def test_a_broken_mbpp_row(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mbpp.read(written(tmp_path / "a.jsonl", MBPP | change))


@pytest.fixture(scope="session")
def mbpp_file(data_folder: Path) -> Path:
    found = sorted((data_folder / "mbpp").glob("*.jsonl"))
    if not found:
        pytest.skip(f"no mbpp in {data_folder}")
    return found[0]


@pytest.mark.slow
@pytest.mark.usefixtures("_has_sandbox")
def test_mbpp_references_pass_and_mutants_fail(mbpp_file: Path) -> None:
    """Of a program without a body no row passes; of operators changed, few by chance."""
    problems = mbpp.read(mbpp_file)
    codes = [json.loads(line)["code"] for line in mbpp_file.read_text().splitlines()]
    failed = [p.id for p, code in zip(problems, codes, strict=True) if not score(p, code)]
    assert failed == []
    draw = random.Random(0)
    some = draw.sample(list(zip(problems, codes, strict=True)), 100)
    assert [problem.id for problem, code in some if score(problem, emptied(code))] == []
    changed = [(p, mutant) for p, code in some for mutant in list(mutants(code))[:1]]
    assert len(changed) >= 50
    survived = [problem.id for problem, mutant in changed if score(problem, mutant)]
    assert len(survived) <= len(changed) // 5


def score(problem: Problem, program: str) -> float:
    return grade_code(f"```python\n{program}\n```", problem.expected).score


# --- HumanEval ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def humaneval_rows(data_folder: Path) -> list[dict]:
    path = data_folder / "humaneval" / "HumanEval.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("_has_sandbox")
def test_humaneval_references_pass_and_mutants_fail(
    humaneval_rows: list[dict], tmp_path: Path
) -> None:
    problems = humaneval.read(written(tmp_path / "a.jsonl", *humaneval_rows))
    bodies = [row["canonical_solution"] for row in humaneval_rows]
    pairs = list(zip(problems, bodies, strict=True))
    continued = [p.id for p, body in pairs if not grade_code(body, p.expected).score]
    stripped = [p.id for p, body in pairs if not grade_code(body.strip(), p.expected).score]
    whole = [p.id for p, body in pairs if not score(p, (p.text or "") + body)]
    assert continued == stripped == whole == []
    some = random.Random(0).sample(pairs, 40)
    assert [p.id for p, _ in some if grade_code("    pass", p.expected).score] == []


def test_a_humaneval_row(tmp_path: Path) -> None:
    row = {"prompt": 'def f(x):\n    """Say x."""\n', "test": "def check(c):\n    assert c(1) == 1"}
    path = written(tmp_path / "a.jsonl", row | {"entry_point": "f", "task_id": "HumanEval/0"})
    (problem,) = humaneval.read(path)
    assert problem.text == 'def f(x):\n    """Say x."""\n'
    assert problem.expected["tests"] == ["def check(c):\n    assert c(1) == 1\ncheck(f)"]


# --- LiveCodeBench --------------------------------------------------------------------------------

BY_INPUT = {
    "question_content": "Add the numbers of a line.",
    "question_id": "abc1_a",
    "difficulty": "easy",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "4 5\n", "output": "9", "testtype": "stdin"}]),
    "metadata": "{}",
}
BY_FUNCTION = BY_INPUT | {
    "starter_code": "class Solution:\n    def add(self, a: List[int], b) -> List[int]:\n        ",
    "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "[4, 5]"}]),
    "private_test_cases": "[]",
    "metadata": json.dumps({"func_name": "add"}),
}


def packed(text: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(text))).decode()


@pytest.mark.usefixtures("_has_sandbox")
def test_livecodebench_by_input(tmp_path: Path) -> None:
    row = BY_INPUT | {"private_test_cases": packed(BY_INPUT["private_test_cases"])}
    plain, of_packed = livecodebench.read(written(tmp_path / "a.jsonl", BY_INPUT, row))
    assert plain.expected == of_packed.expected
    assert plain.kind == "easy"
    assert "reads its input from stdin" in plain.messages[0].content
    assert score(plain, "print(sum(map(int, input().split())))") == 1.0
    assert score(plain, "print(3)") == 0.0


@pytest.mark.usefixtures("_has_sandbox")
def test_livecodebench_by_function(tmp_path: Path) -> None:
    (problem,) = livecodebench.read(written(tmp_path / "a.jsonl", BY_FUNCTION))
    start = BY_FUNCTION["starter_code"]
    assert "Complete this code" in problem.messages[0].content
    assert score(problem, f"{start}return [x + b for x in a]") == 1.0
    assert score(problem, f"{start}return (x + b for x in a)") == 0.0
    assert score(problem, f"{start}return tuple(x + b for x in a)") == 1.0
    assert score(problem, f"{start}return a") == 0.0


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("called",)


@pytest.mark.parametrize("private", ["no base 64!", packed(Evil()), "[{}]", "AAAA"])
def test_livecodebench_tests_that_cannot_be_read(
    tmp_path: Path, private: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "a.jsonl", BY_INPUT | {"private_test_cases": private})
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: its tests can't be read"):
        livecodebench.read(path)
    assert capsys.readouterr().out == ""
