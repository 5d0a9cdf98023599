"""What grades an answer: one row a grader. Standard library only.

A grader is a function of an answer and of what is expected of it, a dictionary: most read its
"answer" alone, others whole tables of constraints or tests. It returns a grade with its evidence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fretsaw.grade.killable import named, workers_of

Expectation = Mapping[str, Any]


@runtime_checkable
class Asks(Protocol):
    """A model that is asked for judgements: `client/judge.py` has it."""

    def ask(self, asked: Sequence[tuple[str, str]]) -> Sequence[Sequence[str | Exception]]:
        """Return the replies to (system text, prompt) pairs, one a vote, or how it failed."""
        ...


@dataclass(frozen=True)
class Grade:
    """What an answer is worth, and what was compared, or found wanting."""

    score: float  # 0 to 1
    evidence: str = ""
    is_graded: bool = True  # else a judge came to no verdict: it counts in no mean


@dataclass(frozen=True, kw_only=True)
class Grader:
    """One way to grade; its function raises `ValueError` for an expectation it can't work with."""

    summary: str
    function: str  # "module:function", imported when it grades
    keys: tuple[str, ...] = ("answer",)  # what it reads of an expectation
    optional: tuple[str, ...] = ()  # what it reads where it is there
    may_hang: bool = False  # then it grades in processes that are killed at the deadline
    check_by: str = ""  # "module:function" that raises for a bad expectation, if another
    sure: str = ""  # "module:function" that needs no such process: a grade, None where it must
    deadline_s: float = 1.0  # for one answer
    is_judged: bool = False  # then its function takes all (answer, expectation) pairs and a judge
    page: str = "rl.md"  # its page in docs/

    def load(self) -> Callable[[str, Expectation], Grade]:
        """Import the function."""
        return named(self.function)

    def check(self, expected: Expectation) -> None:
        """Raise ValueError for an expectation that it can't work with."""
        named(self.check_by or self.sure or self.function)("", expected)


GRADERS: dict[str, Grader] = {
    "number": Grader(
        summary="the answer's final number has exactly the expected value",
        function="fretsaw.grade.number:grade_number",
    ),
    "exact": Grader(
        summary="the answer is the expected text, but for case and spaces",
        function="fretsaw.grade.text:grade_exact",
    ),
    "math": Grader(
        summary="the answer's final formula or number equals the expected one",
        function="fretsaw.grade.algebra:grade_math",
        sure="fretsaw.grade.math:sure_grade",
        may_hang=True,
    ),
    "choice": Grader(
        summary="the answer takes the expected one of several choices, by its letter or its text",
        function="fretsaw.grade.choice:grade_choice",
        keys=("answer", "choices"),
    ),
    "calls": Grader(
        summary="the answer makes the expected function calls, compared as BFCL does",
        function="fretsaw.grade.calls:grade_calls",
        keys=("calls", "functions"),
        page="grade.md",
    ),
    "recall": Grader(
        summary="the share of the expected words that stand in the answer",
        function="fretsaw.grade.text:grade_recall",
        keys=("words",),
    ),
    "verdict": Grader(
        summary="the answer judges a pair as expected: [[A>B]]",
        function="fretsaw.grade.judge:grade_verdict",
    ),
    "judge": Grader(
        summary="a model judges the answer: right, wrong, or no verdict",
        function="fretsaw.grade.judge:grade_judged",
        check_by="fretsaw.grade.judge:check_judged",
        keys=(),
        optional=("answer",),
        is_judged=True,
    ),
    "contains": Grader(
        summary="the expected words stand in the answer, and no other choice does",
        function="fretsaw.grade.text:grade_contains",
        optional=("choices",),
    ),
    "instructions": Grader(
        summary="every instruction of IFEval's is followed",
        function="fretsaw.grade.instructions.grade:grade_instructions",
        keys=("instruction_id_list", "kwargs"),
        optional=("rules", "verdict"),
        page="grade.md",
    ),
    "code": Grader(
        summary="the answer's Python program passes every test, in a sandbox",
        function="fretsaw.grade.code:grade_code",
        keys=(),
        optional=("tests", "setup", "preamble", "entry_point", "inputs", "outputs", "fn_name"),
        sure="fretsaw.grade.code:sure_grade",
        may_hang=True,  # never over its own limits: it is for several at a time
        deadline_s=3600.0,
        page="sandbox.md",
    ),
}


def grade_batch(
    grader: str, pairs: Sequence[tuple[str, Expectation]], judge: Asks | None = None
) -> list[Grade]:
    """Return the grades of (answer, expectation) pairs, in their order.

    An answer on which a grader hangs or dies gets 0, with that as evidence. Raises ValueError where
    it takes a judge and there is none.
    """
    row = GRADERS[grader]
    if row.is_judged:
        if judge is None:
            raise ValueError(
                f"grader {grader!r}: takes a model that judges; only `fretsaw eval` has one, by "
                "--judge-url"
            )
        return named(row.function)(pairs, judge)
    if not row.may_hang:
        function = row.load()
        return [function(answer, expected) for answer, expected in pairs]
    sure = named(row.sure) if row.sure else lambda answer, expected: None
    grades: dict[int, Grade | None] = {i: sure(*pair) for i, pair in enumerate(pairs)}
    unsure = [i for i, grade in grades.items() if grade is None]
    found = workers_of(row.function).grade([pairs[i] for i in unsure], deadline_s=row.deadline_s)
    for i, outcome in zip(unsure, found, strict=True):
        grades[i] = Grade(0.0, outcome) if isinstance(outcome, str) else outcome
    return [grade for grade in grades.values() if grade is not None]
