"""Word problems of the small world as a task.

Those of the held-out split share no chain of arithmetic with any training text or conversation.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import cast

from fretsaw.chat.message import Message
from fretsaw.data import world
from fretsaw.tasks.problem import BadOption, Problem, TooFew

MAX_STEPS = 100  # of arithmetic in one problem
MAX_REPEATS = 2000  # in a row, after which the rest is not worth the search


def from_options(
    num_problems: int, seed: int, split: world.Split, options: Mapping[str, str]
) -> list[Problem]:
    """Return problems as a task's options say: steps=2-5, max_value=30, phrasing=heldout."""
    phrasing = options.get("phrasing", "train")
    if phrasing not in world.WORDINGS:
        raise BadOption(f"phrasing is one of {', '.join(world.WORDINGS)}")
    try:
        first, _, last = options.get("steps", "2-5").partition("-")
        steps = range(int(first), int(last or first) + 1)
        max_value = int(options.get("max_value", world.MAX_VALUE))
    except ValueError:
        raise BadOption("steps is a number or a range such as 2-5, max_value a number") from None
    if steps and steps[-1] > MAX_STEPS:
        raise BadOption(f"steps is {MAX_STEPS} at most")
    return make_problems(
        num_problems,
        seed,
        steps=steps,
        phrasing=cast(world.Phrasing, phrasing),
        max_value=max_value,
        split=split,
    )


def make_problems(
    num_problems: int,
    seed: int,
    *,
    steps: Sequence[int] = (2, 3, 4, 5),
    phrasing: world.Phrasing = "train",
    max_value: int = world.MAX_VALUE,
    split: world.Split = "heldout",
) -> list[Problem]:
    """Return different problems, cycling through the numbers of `steps`.

    Raises `TooFew` where the world has not so many.
    """
    if num_problems < 1 or not steps or min(steps) < 1:
        raise ValueError(
            f"word problems: {num_problems} problems of steps {tuple(steps)}; "
            "give at least one problem, of one step or more"
        )
    problems: list[Problem] = []
    asked: set[str] = set()
    num_repeats = 0
    for attempt in itertools.count():
        if len(problems) == num_problems:
            return problems
        if num_repeats == MAX_REPEATS:
            raise TooFew(f"about {len(problems)} different ones; ask for fewer, or for more steps")
        problem = world.make_problem(
            random.Random(f"word problem {seed} {attempt}").getrandbits(64),
            num_steps=steps[len(problems) % len(steps)],
            split=split,
            phrasing=phrasing,
            max_value=max_value,
        )
        num_repeats = num_repeats + 1 if problem.question in asked else 0
        if num_repeats == 0:
            asked.add(problem.question)
            problems.append(
                Problem(
                    id=str(len(problems)),
                    messages=(Message("user", problem.question),),
                    expected={"answer": problem.answer},
                    kind=f"{problem.num_steps} steps" if problem.num_steps > 1 else "1 step",
                    text=world.problem_prompt(problem, mode="off"),
                )
            )
    raise AssertionError("itertools.count ends never")
