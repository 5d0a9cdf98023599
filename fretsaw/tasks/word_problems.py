"""Word problems of the small world as a task.

Those of the held-out split share no chain of arithmetic with any training text or conversation.
"""

import itertools
import random
from collections.abc import Sequence

from fretsaw.chat.message import Message
from fretsaw.data import world
from fretsaw.tasks.problem import Problem


def make_problems(
    num_problems: int,
    seed: int,
    *,
    steps: Sequence[int] = (2, 3, 4, 5),
    phrasing: world.Phrasing = "train",
    max_value: int = world.MAX_VALUE,
    split: world.Split = "heldout",
) -> list[Problem]:
    """Return different problems, cycling through the numbers of `steps`."""
    if num_problems < 1 or not steps or min(steps) < 1:
        raise ValueError(
            f"word problems: {num_problems} problems of steps {tuple(steps)}; "
            "give at least one problem, of one step or more"
        )
    problems: list[Problem] = []
    asked: set[str] = set()
    for attempt in itertools.count():
        if len(problems) == num_problems:
            return problems
        problem = world.make_problem(
            random.Random(f"word problem {seed} {attempt}").getrandbits(64),
            num_steps=steps[len(problems) % len(steps)],
            split=split,
            phrasing=phrasing,
            max_value=max_value,
        )
        if problem.question not in asked:
            asked.add(problem.question)
            problems.append(
                Problem(
                    id=str(len(problems)),
                    messages=(Message("user", problem.question),),
                    answer=problem.answer,
                    kind=f"{problem.num_steps} steps" if problem.num_steps > 1 else "1 step",
                    text=world.problem_prompt(problem, mode="off"),
                )
            )
    raise AssertionError("itertools.count ends never")
