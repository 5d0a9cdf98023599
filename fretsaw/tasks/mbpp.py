"""MBPP: small functions in Python, each with three tests that the question shows.

Austin et al., arXiv 2108.07732. Grader `code`.
"""

import ast
from collections.abc import Sequence
from pathlib import Path

from fretsaw.data.rows import read_objects
from fretsaw.tasks.fields import Row, asked, text_of
from fretsaw.tasks.problem import Problem

# After the model cards of Llama-Nemotron.
PROMPT = """\
You are a programmer whose answers are right and can be relied on.

@@ Instruction
Here is the given problem and test examples:
{prompt}
Use Python. Define the functions that the tests call, with the arguments and the results that they \
show. Put all of your code into one code block:
```python
# your code
```"""


def read(path: Path) -> list[Problem]:
    """Read `text` (or `prompt`), `code`, `test_list`, `task_id` and what runs before the tests.

    That is `test_setup_code`, or `test_imports` in the sanitised file. Of `code`, the reference
    solution, only the name of the function under test is taken.
    """
    return [_problem(row, number, where) for number, (where, row) in enumerate(read_objects(path))]


def _problem(row: Row, number: int, where: str) -> Problem:
    text, code = text_of(row, where, "text", "prompt"), text_of(row, where, "code")
    tests = row.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(t, str) for t in tests):
        raise ValueError(f"{where}: test_list is {tests!r:.80}; it is a list of texts")
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    question = "\n".join([text, *tests])
    return asked(
        PROMPT.replace("{prompt}", question),
        {"tests": tests, "setup": setup, "entry_point": _entry_point(code, tests, where)},
        "code",
        id=row.get("task_id", number),
        where=where,
        text=f'"""\n{question}\n"""\n',
    )


def _entry_point(code: str, tests: Sequence[str], where: str) -> str | None:
    """Return the function of the reference solution that the first test calls."""
    try:
        defined = {n.name for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)}
        calls = [n for n in ast.walk(ast.parse(tests[0])) if isinstance(n, ast.Call)]
    except SyntaxError as error:
        raise ValueError(f"{where}: {error.text!r} is no Python; give the published file") from None
    named = [call.func.id for call in calls if isinstance(call.func, ast.Name)]
    return next((name for name in named if name in defined), None)
