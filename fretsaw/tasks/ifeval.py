"""IFEval: prompts with instructions that can be verified (Zhou et al. 2023, arXiv 2311.07911).

Its figures are four: the share of prompts all of whose instructions are followed and the share of
instructions followed, each strict and loose.
"""

from collections.abc import Sequence
from pathlib import Path

from fretsaw.chat.message import Message
from fretsaw.data.rows import Row, read_objects
from fretsaw.grade.instructions.grade import grade_instructions, read_verdicts
from fretsaw.tasks.problem import Problem


def read(path: Path, rules: str = "repaired") -> list[Problem]:
    """Read `{"key", "prompt", "instruction_id_list", "kwargs"}` a row.

    `rules` are those of the grader; published figures are by `reference`. The prompt is put as it
    stands: any word added could break an instruction. Raises ValueError
    with file and line for a row that could not be graded, and for a key twice.
    """
    problems: list[Problem] = []
    lines: dict[str, str] = {}
    for where, row in read_objects(path):
        problem = _problem(row, where, rules)
        if problem.id in lines:
            raise ValueError(
                f"{where}: key is {problem.id}, as in {lines[problem.id]}; give each its own"
            )
        lines[problem.id] = where
        problems.append(problem)
    return problems


def _problem(row: Row, where: str, rules: str) -> Problem:
    key, prompt = row.get("key"), row.get("prompt")
    if not isinstance(key, int) or isinstance(key, bool):
        raise ValueError(f"{where}: key is {key!r}; write a whole number")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where}: prompt is {prompt!r}; write the question")
    expected = {name: row.get(name) for name in ("instruction_id_list", "kwargs")}
    expected["rules"] = rules
    try:
        grade_instructions("", expected)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    count = len(row["instruction_id_list"])
    return Problem(
        id=str(key),
        messages=(Message("user", prompt),),
        expected=expected,
        grader="instructions",
        kind=f"{count} instructions" if count > 1 else "1 instruction",
        text=prompt,
        where=where,
    )


def figures(evidence: Sequence[str]) -> dict[str, float]:
    """Return the four figures, shares from 0 to 1, from the evidence of every graded answer.

    Raises ValueError where there is none, or where it is not that of the grader `instructions`.
    """
    if not evidence:
        raise ValueError("evidence is empty; give that of one graded answer at least")
    prompts = [read_verdicts(text) for text in evidence]
    verdicts = [one for prompt in prompts for one in prompt]
    return {
        "prompt_strict": sum(all(one.strict for one in p) for p in prompts) / len(prompts),
        "prompt_loose": sum(all(one.loose for one in p) for p in prompts) / len(prompts),
        "instruction_strict": sum(one.strict for one in verdicts) / len(verdicts),
        "instruction_loose": sum(one.loose for one in verdicts) / len(verdicts),
    }
