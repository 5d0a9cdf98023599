"""A task by its name, as people write it: `word_problems:steps=2-5,max_value=30`, or a file."""

from pathlib import Path
from typing import cast

from fretsaw.data import world
from fretsaw.tasks import word_problems
from fretsaw.tasks.problem import Problem, read_problems


def load_problems(
    task: str,
    num_problems: int,
    *,
    seed: int,
    split: world.Split = "heldout",
    file: Path | None = None,
) -> list[Problem]:
    """Return the problems of a task; all of the user's own `file` where there is one."""
    if file is not None:
        return read_problems(file)
    name, _, arguments = task.partition(":")
    if name != "word_problems":
        raise ValueError(f"task {task!r}: unknown; use word_problems, or a JSONL file of your own")
    words = [word.partition("=") for word in arguments.split(",") if word]
    options = {key: value for key, _, value in words}
    known = ("steps", "max_value", "phrasing")
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ValueError(f"task {task!r}: no option {unknown[0]!r}; it has {', '.join(known)}")
    phrasing = options.get("phrasing", "train")
    if phrasing not in world.WORDINGS:
        raise ValueError(f"task {task!r}: phrasing is one of {', '.join(world.WORDINGS)}")
    try:
        first, _, last = options.get("steps", "2-5").partition("-")
        steps = range(int(first), int(last or first) + 1)
        max_value = int(options.get("max_value", world.MAX_VALUE))
    except ValueError:
        raise ValueError(
            f"task {task!r}: steps is a number or a range such as 2-5, max_value a number"
        ) from None
    return word_problems.make_problems(
        num_problems,
        seed,
        steps=steps,
        phrasing=cast(world.Phrasing, phrasing),
        max_value=max_value,
        split=split,
    )
