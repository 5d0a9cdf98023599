"""Mathematics whose answer is a formula or a number in a box: MATH-500, MATH and AIME."""

from pathlib import Path

from fretsaw.data.rows import read_objects
from fretsaw.grade.number import last_boxed
from fretsaw.tasks.fields import asked, number_of, text_of
from fretsaw.tasks.problem import Problem

# As the model cards of Llama-Nemotron have it.
PROMPT = (
    "Below is a math question. I want you to reason through the steps and then give a final "
    "answer. Your final answer should be in \\boxed{{}}.\nQuestion: {question}"
)


def read_math(path: Path) -> list[Problem]:
    """Read `problem`, `answer` (else the box of `solution`), `subject` or `type`, `level`."""
    problems = []
    for number, (where, row) in enumerate(read_objects(path)):
        question = text_of(row, where, "problem")
        answer = row.get("answer")
        if answer is None:
            answer = last_boxed(text_of(row, where, "solution"))
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{where}: neither an answer nor a solution with a \\boxed{{}} one")
        level = str(row.get("level", "")).removeprefix("Level ")
        kind = f"level {level}" if level else str(row.get("subject", row.get("type", "")))
        id = row.get("unique_id", number)
        problems.append(_problem(question, answer.strip(), "math", id, where, kind))
    return problems


def read_aime(path: Path) -> list[Problem]:
    """Read `problem` (or `question`), `answer` (0 to 999), `id`."""
    return [
        _problem(
            text_of(row, where, "problem", "question", "Problem"),
            number_of(row, where, "answer", "Answer"),
            "number",
            row.get("id", row.get("ID", number)),
            where,
        )
        for number, (where, row) in enumerate(read_objects(path))
    ]


def _problem(
    question: str, answer: str, grader: str, id: object, where: str, kind: str = ""
) -> Problem:
    return asked(
        PROMPT.format(question=question),
        {"answer": answer},
        grader,
        id=id,
        where=where,
        kind=kind,
        text=f"Question: {question}\nAnswer:",
    )
