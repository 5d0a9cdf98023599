"""Families of problems: one row a task, by the name that people write.

`word_problems:steps=2-5,max_value=30` is a task with options; a path is the user's own file.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fretsaw.chat.reasoning import Mode
from fretsaw.data import world
from fretsaw.engine.sampling import Sampling
from fretsaw.tasks.problem import BadOption, Problem, TooFew, read_problems


@dataclass(frozen=True, kw_only=True)
class Task:
    """A family of problems: where they come from, how they are put and graded, and under what."""

    summary: str
    function: str  # "module:function" of (number, seed, split, options as text) -> Problems
    options: tuple[str, ...] = ()  # what may stand after the name
    grader: str = "number"
    prompt: str = "{question}"  # the user's turn
    sampling: Mapping[Mode, Sampling]  # what answers are drawn with where nothing else is said
    licence: str  # of the data
    page: str = "eval.md"  # its page in docs/

    def load(self) -> Callable[..., list[Problem]]:
        """Import the function."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)

    def put(self, problem: Problem) -> Problem:
        """Return a problem as this task asks it, graded by this task's grader."""
        *before, last = problem.messages
        asked = replace(last, content=self.prompt.replace("{question}", last.content))
        return replace(problem, messages=(*before, asked), grader=self.grader)


GREEDY = Sampling(max_tokens=96)

TASKS: dict[str, Task] = {
    "word_problems": Task(
        summary="arithmetic in stories of a few steps, of the generated world",
        function="fretsaw.tasks.word_problems:from_options",
        options=("steps", "max_value", "phrasing"),
        sampling={"on": GREEDY, "off": GREEDY},
        licence="Apache-2.0, generated here",
    ),
}


def load_problems(
    task: str,
    num_problems: int,
    *,
    seed: int,
    split: world.Split = "heldout",
    file: Path | None = None,
    setting: str = "num_problems",
) -> list[Problem]:
    """Return the problems of a task; all of the user's own `file` where there is one.

    Raises ValueError for an unknown task, for options that are not the task's, and where the task
    has fewer problems than `setting` asks for.
    """
    if file is not None:
        return read_problems(file)
    name, _, arguments = task.partition(":")
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise ValueError(f"task {task!r}: unknown; use {known}, or a JSONL file of your own")
    words = [word.partition("=") for word in arguments.split(",") if word]
    options = {key: value for key, _, value in words}
    for key in options:
        if key not in TASKS[name].options:
            raise ValueError(
                f"task {task!r}: no option {key!r}; it has {', '.join(TASKS[name].options)}"
            )
    try:
        problems = TASKS[name].load()(num_problems, seed, split, options) if num_problems else []
    except TooFew as error:
        raise ValueError(f"{setting}: {num_problems}; {task!r} has {error}") from None
    except BadOption as error:
        raise ValueError(f"task {task!r}: {error}") from None
    return [TASKS[name].put(problem) for problem in problems]
