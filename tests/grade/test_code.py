"""Code graded: the program found in an answer, tests of three kinds, and what is refused."""

import pytest

from fretsaw.grade.code import find_program, grade_code, same_output
from fretsaw.grade.grader import grade_batch
from fretsaw.sandbox.backend import SETTING, choose_backend

DOUBLE = "```python\ndef double(x):\n    return 2 * x\n```"
TESTS = {"tests": ["assert double(2) == 4", "assert double(3) == 6"]}


@pytest.fixture(autouse=True)
def _has_sandbox() -> None:
    try:
        choose_backend()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("So:\n```python\nx = 1\n```\nor better\n```python\nx = 2\n```\nDone.", "x = 2\n"),
        ("```Python\nx = 1\n```", "x = 1\n"),
        ("```py\r\nx = 1\r\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```\nprinted\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2  # cut of", "x = 1\n"),
        ("x = 1\nprint(x)", "x = 1\nprint(x)"),
        ("The answer is below.", None),
        ("", None),
    ],
)
def test_the_program_of_an_answer(answer: str, program: str | None) -> None:
    assert find_program(answer) == program


def test_an_answer_may_go_on_after_a_preamble() -> None:
    preamble = "def double(x):\n"
    assert find_program("    return 2 * x", preamble) == "def double(x):\n    return 2 * x"
    assert find_program("return 2 * x", preamble) == "def double(x):\n    return 2 * x"
    assert find_program("It returns 2 * x", preamble) is None
    blocks = "```python\ndef double(x): return 3\n```"
    assert find_program(blocks, "import math") == "import math\ndef double(x): return 3\n"


def test_tests_that_assert() -> None:
    grade = grade_code(DOUBLE, TESTS)
    assert (grade.score, grade.evidence) == (1.0, "2 tests passed")
    grade = grade_code(DOUBLE.replace("2 * x", "x + 2"), TESTS)
    assert (grade.score, grade.evidence) == (
        0.0,
        "test 2 of 2: assert double(3) == 6: AssertionError",
    )
    assert grade_code("no idea", TESTS).evidence == "no Python program"
    grade = grade_code("import nowhere", TESTS)
    assert grade.evidence == "before the tests: ModuleNotFoundError: No module named 'nowhere'"
    before = {"tests": ["assert f(y) == 6"], "preamble": "k = 3", "setup": "y = 2"}
    assert grade_code("```python\ndef f(x): return k * x\n```", before).score == 1.0


def test_outputs() -> None:
    program = (
        "```python\nfor _ in range(int(input())):\n    print(sum(map(int, input().split())))\n```"
    )
    expected = {"inputs": ["1\n1 2\n", "2\n1 2\n3 4\n"], "outputs": ["3", "3\n7\n"]}
    assert grade_code(program, expected).evidence == "2 tests passed"
    wrong = expected | {"outputs": ["3", "3\n8"]}
    grade = grade_code(program, wrong)
    assert (grade.score, grade.evidence) == (0.0, "test 2 of 2: wrote '3\\n7', not '3\\n8'")
    grade = grade_code("1 / 0", expected)
    assert grade.evidence == "test 1 of 2: exit code 1: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("written", "wanted", "is_same"),
    [
        ("1 2 \n3\n\n", "1 2\n3", True),
        ("1.0 yes", "1 yes", True),
        ("0.1", "0.10", True),
        ("1  2", "1 2", True),
        ("1\n2", "1 2", False),
        ("Yes", "YES", False),
        ("", "1", False),
        ("nan", "nan", True),
        ("0.1", "0.1000001", False),
    ],
)
def test_which_outputs_are_the_same(written: str, wanted: str, is_same: bool) -> None:
    assert same_output(written, wanted) is is_same


def test_functions_that_are_called() -> None:
    expected = {
        "fn_name": "pair",
        "inputs": [[1, "a"], [2, None]],
        "outputs": [[1, "a"], [2, None]],
    }
    top = "def pair(x, y): return (x, y)"
    method = "class Solution:\n    def pair(self, x, y): return [x, y]"
    assert grade_code(top, expected).score == grade_code(method, expected).score == 1.0
    grade = grade_code(top.replace("(x, y)\n", "x"), expected | {"outputs": [[1, "a"], [2, 3]]})
    assert grade.evidence.startswith("test 2 of 2: assert called(*[2, None]) == plain([2, 3])")


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({}, "nothing to test by; write tests, or inputs and outputs"),
        ({"tests": []}, "write a list of statements"),
        ({"tests": ["assert ("]}, "'assert \\(' is no Python"),
        ({"tests": ["assert f()"], "setup": "if"}, "setup 'if': write Python"),
        ({"inputs": ["1"], "outputs": []}, "1 and 0; write one output for each input"),
        ({"inputs": [1], "outputs": [1]}, "write texts, or fn_name"),
        ({"inputs": [1], "outputs": [1], "fn_name": "f"}, "each of its inputs as a list"),
        ({"inputs": [[1]], "outputs": [1], "fn_name": "f()"}, "fn_name 'f\\(\\)'"),
    ],
)
def test_an_expectation_that_cannot_be_worked_with(expected: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        grade_code("", expected)


def test_a_batch_is_graded_by_several_at_a_time() -> None:
    answers = [
        DOUBLE,
        "import os\nos._exit(0)",
        "def double(x):\n    while x != 2: pass\n    return 4",
        "x",
        DOUBLE,
    ]
    grades = grade_batch("code", [(answer, TESTS) for answer in answers])
    assert [grade.score for grade in grades] == [1, 0, 0, 0, 1]
    assert (
        grades[2].evidence
        == "test 2 of 2: assert double(3) == 6: no end within 6 s on the processor"
    )


def test_no_sandbox_no_grade(monkeypatch: pytest.MonkeyPatch) -> None:
    from fretsaw.grade import code

    code._sandbox.cache_clear()
    monkeypatch.setenv(SETTING, "none")
    with pytest.raises(ValueError, match="FRETSAW_SANDBOX=none: unknown"):
        grade_code(DOUBLE, TESTS)
