"""Word problems of arithmetic whose answer is a number: GSM8K and SVAMP."""

from pathlib import Path

from fretsaw.data.rows import read_objects
from fretsaw.tasks.fields import asked, number_of, text_of
from fretsaw.tasks.problem import Problem


def read_gsm8k(path: Path) -> list[Problem]:
    """Read `question`, `answer` (worked text, then "#### 72")."""
    problems = []
    for number, (where, row) in enumerate(read_objects(path)):
        question = text_of(row, where, "question")
        _, mark, answer = text_of(row, where, "answer").rpartition("####")
        if not mark:
            raise ValueError(f"{where}: answer has no '####'; it ends with '#### 72' or the like")
        problems.append(_problem(question, answer.strip(), number, where))
    return problems


def read_svamp(path: Path) -> list[Problem]:
    """Read `Body` (a story), `Question`, `Answer` (a number), `ID`, `Type`."""
    return [
        _problem(
            f"{_ended(text_of(row, where, 'Body'))} {text_of(row, where, 'Question')}",
            number_of(row, where, "Answer"),
            row.get("ID", number),
            where,
            kind=str(row.get("Type", "")),
        )
        for number, (where, row) in enumerate(read_objects(path))
    ]


def _ended(story: str) -> str:
    return story if story.endswith((".", "?", "!")) else f"{story}."


def _problem(question: str, answer: str, id: object, where: str, kind: str = "") -> Problem:
    text = f"Question: {question}\nAnswer:"
    return asked(question, {"answer": answer}, "number", id=id, where=where, kind=kind, text=text)
