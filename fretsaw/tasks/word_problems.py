"""Word problems of the small world as a task: prompts, and a grade for what a model writes.

Evaluation and reinforcement learning use the same object. The problems are of the held-out split:
none of their chains of arithmetic is in the training text.
"""

import itertools
import math
import random
import re
from collections.abc import Sequence

from fretsaw.data import world


class WordProblems:
    """`num_problems` different held-out problems, cycling through the numbers of `steps`."""

    def __init__(
        self,
        num_problems: int,
        seed: int,
        steps: Sequence[int] = (2, 3, 4, 5),
        mode: world.Mode = "on",
        phrasing: world.Phrasing = "train",
    ) -> None:
        if num_problems < 1 or not steps:
            raise ValueError(
                f"word problems: {num_problems} problems of steps {tuple(steps)}; "
                "give at least one problem and one number of steps"
            )
        self.mode: world.Mode = mode
        self.problems: list[world.Problem] = []
        asked: set[str] = set()
        for attempt in itertools.count():
            if len(self.problems) == num_problems:
                break
            problem = world.make_problem(
                random.Random(f"word problem {seed} {attempt}").getrandbits(64),
                num_steps=steps[len(self.problems) % len(steps)],
                split="heldout",
                phrasing=phrasing,
            )
            if problem.question not in asked:
                asked.add(problem.question)
                self.problems.append(problem)

    def prompts(self) -> list[str]:
        """Return the texts for the model to go on from; they put it in the task's mode."""
        return [world.problem_prompt(problem, mode=self.mode) for problem in self.problems]

    def grade(self, index: int, completion: str) -> float:
        """Return 1.0 where the last number of the answer is right, else 0.0.

        The answer is what follows the last closing tag; reasoning that was opened (by the prompt or
        by the model) and never closed leaves no answer.
        """
        _, closed, answer = completion.rpartition(world.CLOSE_TAG)
        is_reasoning = self.mode == "on" or world.OPEN_TAG in completion
        if is_reasoning and not closed:
            return 0.0
        numbers = re.findall(r"-?\d+", answer)
        return float(bool(numbers) and numbers[-1] == self.problems[index].answer)

    def num_steps(self, index: int) -> int:
        """Return how many steps a problem takes."""
        return self.problems[index].num_steps


def accuracy_interval(num_correct: int, num_graded: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, by default at 95 %.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); sound at 0 and 1 and for small n.
    """
    assert num_graded > 0, "no grades, so no accuracy"
    assert 0 <= num_correct <= num_graded, f"{num_correct} right of {num_graded}"
    p, n = num_correct / num_graded, num_graded
    center = p + z**2 / (2 * n)
    margin = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((center + sign * margin) / (1 + z**2 / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)
