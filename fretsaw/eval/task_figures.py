"""What graded answers say of a model: scores by mode with their intervals, and what they cost."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fretsaw.chat.reasoning import MODES
from fretsaw.eval.intervals import bootstrap, bootstrap_ratio, wilson
from fretsaw.rollout.rows import Row


def task_figures(answers: Sequence[Row]) -> dict[str, Any]:
    """Return by mode asked for: accuracy, by kind, what it cost in tokens, and what went wrong.

    An answer counts as right where it is correct and finished; a faulty format is counted apart.
    One that failed counts as wrong, and as neither faulty nor truncated. One without a verdict is
    in no mean. `difference` is accuracy on minus off over the same problems, with its bootstrap
    interval.
    """
    figures = {
        mode: mode_figures([row for row in answers if row.mode == mode])
        for mode in dict.fromkeys(row.mode for row in answers)
    }
    if figures.keys() == {*MODES}:
        paired = zip(figures["on"]["grades"], figures["off"]["grades"], strict=True)
        gains = [on - off for on, off in paired if on is not None and off is not None]
        if gains:
            figures["difference"] = {"gain": mean(gains), "interval": bootstrap(gains)}
    return figures


def mode_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of one mode's answers; `grades` has one a problem, None without verdict.

    With several answers to a problem `accuracy` is the mean over all, `pass_at` the chance that one
    of k is right, and `majority` that of the answer given most often.
    """
    by_problem = _grouped(rows, lambda row: row.group)
    grades = [_accuracy(own) for own in by_problem.values()]
    graded = [grade for grade in grades if grade is not None]
    tokens = [row.num_tokens for row in rows]
    made = [row for row in rows if row.error is None]
    samples = max(len(own) for own in by_problem.values())
    figures: dict[str, Any] = {
        "accuracy": mean(graded) if graded else None,
        "interval": _interval(graded, samples) if graded else None,
        "by_kind": {kind: _accuracy(own) for kind, own in _grouped(rows, _kind).items()},
        "tokens_per_answer": sum(tokens) / len(rows),
        "tokens_interval": bootstrap(tokens),
        "format_faults": sum(row.fault is not None for row in made) / len(rows),
        "truncated": sum(not row.is_finished for row in made) / len(rows),
        "failed": 1 - len(made) / len(rows),
        "no_verdict": sum(not row.is_graded for row in rows) / len(rows),
        "samples": samples,
        "temperature": rows[0].temperature,
        "top_p": rows[0].top_p,
        "grades": grades,
    }
    if samples > 1:
        judged = [[row for row in own if row.is_graded] for own in by_problem.values()]
        each = [[_is_right(row) == 1 for row in own] for own in judged if own]
        chances = {
            k: [pass_at(len(own), sum(own), k) for own in each if len(own) >= k]
            for k in (2**n for n in range(samples.bit_length()))
        }
        figures["pass_at"] = {k: mean(own) for k, own in chances.items() if own}
        if votes := [majority(own) for own in judged if own]:
            figures["majority"] = {"accuracy": mean(votes), "interval": bootstrap(votes)}
    return figures


def own_figures(
    rows: Sequence[Row], figures: Callable[[Sequence[str]], Mapping[str, float]]
) -> dict[str, float]:
    """Return a task's own figures of one mode's evidence, the mean over the samples of a problem.

    What has no verdict is left out.
    """
    by_sample = _grouped([row for row in rows if row.is_graded], lambda row: row.index)
    each = [figures([row.found for row in own]) for own in by_sample.values()]
    names = dict.fromkeys(name for one in each for name in one)
    return {name: mean([one[name] for one in each if name in one]) for name in names}


def pass_at(num_answers: int, num_right: int, k: int) -> float:
    """Return the chance that one of k answers drawn from these is right (arXiv 2107.03374, eq. 1).

    1 - C(n - c, k) / C(n, k).
    """
    return 1 - math.comb(num_answers - num_right, k) / math.comb(num_answers, k)


def majority(rows: Sequence[Row]) -> float:
    """Return the grade of the answer that was given most often, the first of several such.

    Answers are alike where the grader found the same in them; cut ones have no vote.
    """
    votes = [row for row in rows if row.is_finished and row.found]
    if not votes:
        return 0.0
    counts = Counter(row.found for row in votes)
    most = max(counts.values())
    return next(float(_is_right(row)) for row in votes if counts[row.found] == most)


def kept_accuracy(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return child / parent accuracy in a mode of both, on if they have it; and its 95 % interval.

    Nothing where the two are in no mode alike.
    """
    shared = [mode for mode in MODES if mode in task["child"] and mode in task["parent"]]
    if not shared:
        return {"kept": None, "interval": None}
    grades = zip(*(task[name][shared[0]]["grades"] for name in ("child", "parent")), strict=True)
    pairs = [(own, other) for own, other in grades if own is not None and other is not None]
    child, parent = [own for own, _ in pairs], [other for _, other in pairs]
    if sum(parent) == 0:
        return {"kept": None, "interval": None}
    kept = sum(child) / sum(parent)
    return {"kept": kept, "interval": bootstrap_ratio(child, parent), "mode": shared[0]}


def mean(values: Sequence[float]) -> float:
    """Return the mean of some values."""
    return sum(values) / len(values)


def _is_right(row: Row) -> float:
    return row.correct * row.is_finished


def _accuracy(rows: Sequence[Row]) -> float | None:
    graded = [_is_right(row) for row in rows if row.is_graded]
    return mean(graded) if graded else None


def _interval(grades: Sequence[float], samples: int) -> tuple[float, float]:
    is_share = samples == 1 and all(grade in (0, 1) for grade in grades)
    return wilson(sum(grades), len(grades)) if is_share else bootstrap(grades)


def _kind(row: Row) -> str:
    return row.kind


def _grouped(rows: Sequence[Row], key: Any) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
