"""Multiple choice: AQuA, GPQA and sets in MMLU's form."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from fretsaw.data.rows import read_objects
from fretsaw.tasks.fields import asked, text_of, texts_of
from fretsaw.tasks.problem import Problem

# As the model cards of Llama-Nemotron have it for GPQA.
PROMPT = (
    "What is the correct answer to this question: {question}\nChoices:\n{choices}\n"
    "Let's think step by step, and put the final answer (should be a single letter {letters}) "
    "into a \\boxed{{}}"
)
_LABEL = re.compile(r"\s*\(?([A-Za-z])[).:]\s*")


def read_aqua(path: Path) -> list[Problem]:
    """Read `question`, `options` ("A)5", ...), `correct` (a letter)."""
    problems = []
    for number, (where, row) in enumerate(read_objects(path)):
        options = texts_of(row, where, "options")
        texts = [_LABEL.sub("", option, count=1) for option in options]
        letter = text_of(row, where, "correct").upper()
        problems.append(_problem(row, "question", texts, letter, number, where))
    return problems


def read_mmlu(path: Path) -> list[Problem]:
    """Read `question`, `choices` or `options` (texts), `answer` (a letter, or its place from 0).

    That is the form of MMLU, MMLU-Pro (`options`, `answer`) and many others; `subject` or
    `category` is the kind.
    """
    problems = []
    for number, (where, row) in enumerate(read_objects(path)):
        texts = texts_of(row, where, "choices" if "choices" in row else "options")
        match row.get("answer"):
            case int() as place if not isinstance(place, bool):
                if not 0 <= place < len(texts):
                    raise ValueError(f"{where}: answer is {place}, of {len(texts)} choices")
                letter = ascii_uppercase[place]
            case _:
                letter = text_of(row, where, "answer").upper()
        problems.append(_problem(row, "question", texts, letter, number, where))
    return problems


def read_gpqa(path: Path) -> list[Problem]:
    """Read `Question`, `Correct Answer`, `Incorrect Answer 1` to `3`, `Record ID`, `Subdomain`.

    The choices are shuffled by a hash of the question, so their order is the same in every run.
    """
    problems = []
    for number, (where, row) in enumerate(read_objects(path)):
        right = text_of(row, where, "Correct Answer")
        wrong = [text_of(row, where, f"Incorrect Answer {n}") for n in (1, 2, 3)]
        question = text_of(row, where, "Question")
        texts = sorted([right, *wrong], key=lambda text: _hash(f"{question}\n{text}"))
        letter = ascii_uppercase[texts.index(right)]
        problems.append(_problem(row, "Question", texts, letter, number, where))
    return problems


def _problem(
    row: Mapping[str, Any], field: str, texts: Sequence[str], letter: str, number: int, where: str
) -> Problem:
    question = text_of(row, where, field)
    choices = dict(zip(ascii_uppercase, texts, strict=False))
    if letter not in choices:
        raise ValueError(
            f"{where}: the answer is {letter!r}, but the choices are {', '.join(choices)}"
        )
    *first, last = choices
    shown = "\n".join(f"{name}. {text}" for name, text in choices.items())
    prompt = PROMPT.format(
        question=question, choices=shown, letters=f"{', '.join(first)} or {last}"
    )
    names = ("Record ID", "question_id", "id")
    id = next((row[name] for name in names if row.get(name) is not None), number)
    kinds = ("Subdomain", "subject", "category")
    return asked(
        prompt,
        {"answer": letter, "choices": choices},
        "choice",
        id=id,
        where=where,
        kind=next((str(row[name]) for name in kinds if row.get(name)), ""),
        text=f"Question: {question}\nAnswer:",
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
