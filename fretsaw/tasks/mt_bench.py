"""MT-Bench: eighty questions of two turns, each answer rated by a model (arXiv 2306.05685)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fretsaw.data.rows import read_objects
from fretsaw.tasks.fields import asked, text_of, texts_of
from fretsaw.tasks.problem import Problem

PROMPTS, REFERENCES = "judge_prompts.jsonl", "reference_answer/gpt-4.jsonl"
PLAIN = ("single-v1", "single-v1-multi-turn")  # of the first turn and the second
BY_REFERENCE = ("single-math-v1", "single-math-v1-multi-turn")


def read(path: Path) -> list[Problem]:
    """Read `question_id`, `category`, `turns`; beside it the judge's prompts and the references.

    That is FastChat's folder as it is. The second turn is the problem that follows on the first.
    """
    prompts = {row.get("name"): row for _, row in read_objects(path.parent / PROMPTS)}
    if missing := {*PLAIN, *BY_REFERENCE} - prompts.keys():
        raise ValueError(f"{path.parent / PROMPTS}: has no prompt {min(missing)!r}")
    references: dict[Any, Sequence[str]] = {}
    for where, row in read_objects(path.parent / REFERENCES):
        match row:
            case {"question_id": id, "choices": [{"turns": [str(), str()] as turns}, *_]}:
                references[id] = turns
            case _:
                raise ValueError(f"{where}: no question_id with choices of two turns")
    return [
        _problem(row, where, prompts, references.get(row.get("question_id"), ()))
        for where, row in read_objects(path)
    ]


def _problem(
    row: Mapping[str, Any],
    where: str,
    prompts: Mapping[Any, Mapping[str, Any]],
    references: Sequence[str],
) -> Problem:
    questions, kind = texts_of(row, where, "turns"), text_of(row, where, "category")
    fields = {"question": questions[0], "question_1": questions[0], "question_2": questions[1]}
    fields |= {f"ref_answer_{i}": text for i, text in enumerate(references, start=1)}

    def turn(number: int) -> Problem:
        name = (BY_REFERENCE if references else PLAIN)[number - 1]
        template = text_of(prompts[name], f"{PROMPTS}, {name}", "prompt_template")
        expected = {
            # the answer that is judged is the last
            "prompt": template.replace(f"{{answer_{number}}}", "{answer}"),
            "system": str(prompts[name].get("system_prompt") or ""),
            "reads": "rating",
            "fields": fields,
        }
        id = f"{row.get('question_id')} turn {number}"
        question = questions[number - 1]
        return asked(question, expected, "judge", id=id, where=where, kind=f"{kind}, turn {number}")

    return replace(turn(1), then=turn(2))


def figures(evidence: Sequence[str]) -> dict[str, float]:
    """Return the mean rating, 1 to 10, of the answers that were rated."""
    ratings: dict[str, list[float]] = defaultdict(list)
    for text in evidence:
        votes = [float(word) for word in text.split() if word.replace(".", "", 1).isdigit()]
        if votes:
            ratings["rating"].append(sum(votes) / len(votes))
    return {name: sum(own) / len(own) for name, own in ratings.items()}
