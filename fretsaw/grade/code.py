"""Whether an answer's Python program passes its tests, in a sandbox of `fretsaw.sandbox`.

What is expected is one of three: `tests`, statements that assert; `inputs` and `outputs`, texts
that the program reads and must write; or these as JSON values with `fn_name`, the function that is
called.
"""

import atexit
import functools
import re
import warnings
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from fretsaw.grade.grader import Expectation, Grade
from fretsaw.sandbox.backend import choose_backend
from fretsaw.sandbox.sandbox import Ended, Sandbox, Verdict

_BLOCK = re.compile(r"^```[ \t]*(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "python3", "py")
_SHOWN = 80  # characters of an output in evidence
# a function at the top, or a method of LeetCode's class; a tuple is as good as the list of JSON
_CALL = """
def called(*arguments):
    try:
        function = {name}
    except NameError:
        function = Solution().{name}
    return plain(function(*arguments))

def plain(value):
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
"""


def grade_code(answer: str, expected: Expectation) -> Grade:
    """Return 1 where the answer's program passes every test, else the first that it does not.

    `preamble` is put before the program, and `setup` before its tests; `entry_point` names the
    function under test. Raises ValueError for an expectation that says none of the three or is not
    well formed, and where programs cannot be run apart from this machine.
    """
    if (grade := sure_grade(answer, expected)) is not None:
        return grade
    sandbox, tests = _sandbox(), _tests(expected)
    source = find_program(answer, _text(expected, "preamble"))
    assert source is not None, "a sure grade is that of an answer without a program"
    if tests is None:
        return _grade_outputs(sandbox, source, expected["inputs"], expected["outputs"])
    setup = _text(expected, "setup")
    if name := expected.get("fn_name"):
        setup += _CALL.format(name=name)
    entry_point = expected.get("entry_point")
    verdict = sandbox.run_tests(source, tests, setup=setup, entry_point=entry_point)
    return Grade(float(verdict.passed), _evidence(verdict, len(tests)))


def sure_grade(answer: str, expected: Expectation) -> Grade | None:
    """Return the grade of an answer without a program, None where it has one; raises as above."""
    choose_backend()
    _tests(expected)
    if find_program(answer, _text(expected, "preamble")) is None:
        return Grade(0.0, "no Python program")
    return None


def find_program(answer: str, preamble: str = "") -> str | None:
    """Return the last whole block of Python, the last block without a language, or the whole text.

    The preamble stands before it. A text without blocks is a program if it parses after that.
    """
    blocks = _BLOCK.findall(answer.replace("\r\n", "\n"))
    for languages in (_PYTHON, ("",)):
        found = [body for language, body in blocks if language.lower() in languages]
        if found:
            return f"{preamble}\n{found[-1]}" if preamble else found[-1]
    # an answer may go on within the preamble's function, its first indent lost to a strip
    texts = [preamble + answer, f"{preamble}    {answer}"] if answer.strip() else []
    return next(filter(_parses, texts), None)


def same_output(written: str, wanted: str) -> bool:
    """Whether two outputs say the same, but for space at the ends of lines and of the text.

    Words that are numbers are the same where their values are: 1.0 and 1.
    """
    ours, theirs = (text.strip().split("\n") for text in (written, wanted))
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(ours: str, theirs: str) -> bool:
    if ours.strip() == theirs.strip():
        return True
    words, others = ours.split(), theirs.split()
    return len(words) == len(others) and all(map(_same_word, words, others))


def _same_word(ours: str, theirs: str) -> bool:
    try:
        return ours == theirs or Decimal(ours) == Decimal(theirs)
    except InvalidOperation:
        return False


def _grade_outputs(
    sandbox: Sandbox, source: str, inputs: Sequence[str], outputs: Sequence[str]
) -> Grade:
    for number, (given, wanted) in enumerate(zip(inputs, outputs, strict=True), start=1):
        ended = sandbox.run(source, given)
        if ended.fault:
            return Grade(0.0, f"test {number} of {len(inputs)}: {_fault(ended)}")
        if not same_output(ended.output, wanted):
            said = f"wrote {_shown(ended.output)}, not {_shown(wanted)}"
            return Grade(0.0, f"test {number} of {len(inputs)}: {said}")
    return Grade(1.0, f"{len(inputs)} tests passed")


def _fault(ended: Ended) -> str:
    """Return why a program ended ill: its exception's last line, where it has one."""
    lines = ended.errors.strip().splitlines()
    return f"{ended.fault}: {lines[-1]}" if lines and "code" in ended.fault else ended.fault


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _evidence(verdict: Verdict, num_tests: int) -> str:
    match verdict.failed:
        case None:
            return verdict.fault or f"{num_tests} tests passed"
        case -1:
            return f"before the tests: {verdict.fault}"
        case number:
            line = verdict.line if len(verdict.line) <= 200 else f"{verdict.line[:200]}..."
            return f"test {number + 1} of {num_tests}: {line}: {verdict.fault}"


@functools.cache
def _sandbox() -> Sandbox:
    """Return the sandbox of this process."""
    sandbox = Sandbox()
    atexit.register(sandbox.close)
    return sandbox


def _tests(expected: Expectation) -> list[str] | None:
    """Return the tests as statements; None where outputs are compared instead."""
    for key in ("preamble", "setup"):
        _text(expected, key)
    if "tests" in expected:
        tests = expected["tests"]
        if not _is_list(tests, str) or not tests:
            raise ValueError(f"tests {tests!r}: write a list of statements that assert")
        for test in tests:
            if not _parses(test):
                raise ValueError(f"tests: {test!r} is no Python; write statements that assert")
        return tests
    inputs, outputs = expected.get("inputs"), expected.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        raise ValueError("nothing to test by; write tests, or inputs and outputs")
    if len(inputs) != len(outputs):
        raise ValueError(
            f"inputs and outputs: {len(inputs)} and {len(outputs)}; write one output for each input"
        )
    name = expected.get("fn_name")
    if name is None:
        if not _is_list(inputs, str) or not _is_list(outputs, str):
            raise ValueError("inputs and outputs: write texts, or fn_name, the function to call")
        return None
    if not isinstance(name, str) or not name.isidentifier() or not _is_list(inputs, list):
        raise ValueError(
            f"fn_name {name!r}: write a function's name, and each of its inputs as a list of "
            "arguments"
        )
    calls = zip(inputs, outputs, strict=True)
    return [f"assert called(*{given!r}) == plain({wanted!r})" for given, wanted in calls]


def _text(expected: Expectation, key: str) -> str:
    text = expected.get(key) or ""
    if not isinstance(text, str) or not _parses(text):
        raise ValueError(f"{key} {text!r}: write Python")
    return text


def _is_list(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is only unwise
            compile(text, "program.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
