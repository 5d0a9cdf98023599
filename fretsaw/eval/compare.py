"""Two evaluations of the same problems, compared problem by problem."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fretsaw.eval.evaluate import RESULTS
from fretsaw.eval.intervals import bootstrap
from fretsaw.eval.task_figures import mean
from fretsaw.rollout.rows import Row, read_rows
from fretsaw.stage.artifact import read_output


@dataclass(frozen=True)
class Difference:
    """What the second scored beyond the first on the problems of one task in one mode."""

    task: str
    mode: str
    num_problems: int
    first: float  # accuracy
    second: float
    gain: float  # mean of the differences by problem
    interval: tuple[float, float]  # of that, 95 %, by bootstrap
    first_tokens: float  # tokens an answer
    second_tokens: float


def differences(first: Path, second: Path) -> list[Difference]:
    """Return the paired differences of two folders that `fretsaw eval` wrote.

    Raises `ValueError` where they share no task and mode, or a task's problems are not the same.
    """
    folders = (first, second)
    answers = [answers_by_task(folder) for folder in folders]
    found: list[Difference] = []
    for task in [name for name in answers[0] if name in answers[1]]:
        pair = [_by_mode(own[task]) for own in answers]
        found += [
            _difference(task, mode, [own[mode] for own in pair], folders)
            for mode in pair[0]
            if mode in pair[1]
        ]
    if not found:
        tasks = [", ".join(own) or "none" for own in answers]
        raise ValueError(
            f"{first} and {second}: evaluated on {tasks[0]} and on {tasks[1]}; give two that "
            "share a task and a mode"
        )
    return found


def answers_by_task(folder: Path) -> dict[str, list[Row]]:
    """Return the answers that a folder's own model gave, by task."""
    tasks = read_output(folder, RESULTS, {"tasks": dict})["tasks"]
    return {
        task: read_rows(folder / f"answers-child-{number}.parquet")
        for number, task in enumerate(tasks)
    }


def _by_mode(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {m: [row for row in rows if row.mode == m] for m in dict.fromkeys(r.mode for r in rows)}


def _difference(
    task: str, mode: str, pair: Sequence[Sequence[Row]], folders: Sequence[Path]
) -> Difference:
    grades = [_grades(rows) for rows in pair]
    questions = [{row.problem: row.question for row in rows} for rows in pair]
    if questions[0] != questions[1]:
        first, second = (len(own) for own in questions)
        raise ValueError(
            f"{task}, reasoning {mode}: {folders[0]} has {first} problems and {folders[1]} "
            f"{second}, and they are not the same; evaluate both with the same file, limit and seed"
        )
    both = [id for id in grades[0] if id in grades[1]]
    if not both:
        raise ValueError(f"{task}, reasoning {mode}: no problem has a verdict in both")
    gains = [grades[1][id] - grades[0][id] for id in both]
    first, second = (mean([own[id] for id in both]) for own in grades)
    first_tokens, second_tokens = (mean([row.num_tokens for row in rows]) for rows in pair)
    return Difference(
        task=task,
        mode=mode,
        num_problems=len(both),
        first=first,
        second=second,
        gain=mean(gains),
        interval=bootstrap(gains),
        first_tokens=first_tokens,
        second_tokens=second_tokens,
    )


def _grades(rows: Sequence[Row]) -> Mapping[str, float]:
    """Return the mean grade of every problem that has a verdict."""
    by_problem: dict[str, list[float]] = {}
    for row in rows:
        if row.is_graded:
            by_problem.setdefault(row.problem, []).append(row.correct * row.is_finished)
    return {problem: mean(grades) for problem, grades in by_problem.items()}


def table(found: Sequence[Difference]) -> list[dict[str, Any]]:
    """Return differences as rows of text, for the screen."""
    return [
        {
            "task": one.task,
            "reasoning": one.mode,
            "problems": str(one.num_problems),
            "first": f"{one.first:.1%}",
            "second": f"{one.second:.1%}",
            "difference": f"{one.gain:+.1%}",
            "95 %": f"{one.interval[0]:+.1%} to {one.interval[1]:+.1%}",
            "tokens": f"{one.first_tokens:,.0f} to {one.second_tokens:,.0f}",
        }
        for one in found
    ]
