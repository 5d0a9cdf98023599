"""LiveCodeBench: problems of programming contests, by standard input or by a function.

Jain et al., arXiv 2403.07974. Grader `code`; all tests, public and private.
"""

import base64
import io
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

from fretsaw.data.rows import read_objects
from fretsaw.tasks.fields import Row, asked, text_of
from fretsaw.tasks.problem import Problem

# After the model cards of Llama-Nemotron.
PROMPT = """\
You will be given a question (problem specification) and will generate a correct Python program \
that matches the specification and passes all tests.

Question: {prompt}

{form}"""
_BY_INPUT = """\
The program reads its input from stdin and writes its answer to stdout. Put it into one code block:
```python
# YOUR CODE HERE
```"""
_BY_FUNCTION = """\
Complete this code, and put all of it into one code block:
```python
{starter_code}
```"""
_IMPORTS = "from typing import *\n"  # what starter code is written with


def read(path: Path) -> list[Problem]:
    """Read `question_content`, `starter_code`, `metadata`, public and `private_test_cases`.

    Private tests may be JSON, or JSON pickled, packed and in base 64 as they are published.
    """
    return [_problem(row, number, where) for number, (where, row) in enumerate(read_objects(path))]


def _problem(row: Row, number: int, where: str) -> Problem:
    question = text_of(row, where, "question_content")
    try:
        tests = [*_tests(row["public_test_cases"]), *_tests(row.get("private_test_cases") or "[]")]
        inputs = [str(test["input"]) for test in tests]
        outputs: list[Any] = [str(test["output"]) for test in tests]
        expected: dict[str, Any] = {"inputs": inputs, "outputs": outputs}
        starter_code, form = str(row.get("starter_code") or ""), _BY_INPUT
        if starter_code.strip():
            form = _BY_FUNCTION.replace("{starter_code}", starter_code.strip())
            expected = {
                "fn_name": json.loads(row["metadata"])["func_name"],
                "inputs": [[json.loads(line) for line in text.split("\n")] for text in inputs],
                "outputs": [json.loads(text) for text in outputs],
                "preamble": _IMPORTS,
            }
    except (KeyError, TypeError, ValueError, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{where}: its tests can't be read ({error!r:.80}); give the published file"
        ) from None
    return asked(
        PROMPT.replace("{form}", form).replace("{prompt}", question),
        expected,
        "code",
        id=row.get("question_id", number),
        where=where,
        kind=str(row.get("difficulty", "")),
    )


def _tests(text: str) -> list[dict[str, str]]:
    """Return tests from JSON; else from JSON that is pickled, packed and in base 64."""
    if not text.lstrip().startswith("["):
        packed = zlib.decompress(base64.b64decode(text))
        text = _OnlyText(io.BytesIO(packed)).load()
    return json.loads(text)


class _OnlyText(pickle.Unpickler):
    """Reads plain values: a file from elsewhere names no class or function to call."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"a pickle of text names {module_name}.{global_name}")
