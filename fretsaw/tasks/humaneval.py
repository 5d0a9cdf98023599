"""HumanEval: Python functions to be written after their signature and docstring.

Chen et al., arXiv 2107.03374. Grader `code`. A model that only continues text goes on after the
docstring; an answer may also be the whole function.
"""

from pathlib import Path

from fretsaw.data.rows import read_objects
from fretsaw.tasks.fields import Row, asked, text_of
from fretsaw.tasks.problem import Problem

PROMPT = """\
Complete this Python function. Answer with the whole function in one code block.

```python
{prompt}
```"""


def read(path: Path) -> list[Problem]:
    """Read `prompt` (signature, docstring), `test` (defines `check`), `entry_point`, `task_id`."""
    return [_problem(row, number, where) for number, (where, row) in enumerate(read_objects(path))]


def _problem(row: Row, number: int, where: str) -> Problem:
    prompt, test = text_of(row, where, "prompt"), text_of(row, where, "test")
    entry_point = text_of(row, where, "entry_point")
    return asked(
        PROMPT.replace("{prompt}", prompt),
        {
            "tests": [f"{test}\ncheck({entry_point})"],
            "preamble": f"{prompt}\n",
            # what else the prompt defines is the tests' own, not what an answer makes of it
            "setup": f"{prompt}\ndel {entry_point}",
            "entry_point": entry_point,
        },
        "code",
        id=row.get("task_id", number),
        where=where,
        text=f"{prompt}\n",
    )
