"""How fast easy answers are graded, beside math-verify on the same answers; and how far they agree.

    python benchmarks/grading.py --math math500.jsonl

Bare numbers are decided without algebra; the bar is 5 times math-verify's rate, and 1,500 a second.
Then answers of the set's own problems: the right one, a near miss, and another problem's.
"""

import argparse
import logging
import random
import time
from pathlib import Path

from math_verify import parse, verify

from fretsaw.grade.grader import grade_batch
from fretsaw.tasks.competition import read_math

NUM_NUMBERS = 3000


def reference(pairs: list[tuple[str, str]]) -> list[float]:
    """Return math-verify's verdicts on (answer, expected) pairs."""
    verdicts = []
    for answer, expected in pairs:
        wanted = parse(f"${expected}$", parsing_timeout=0)
        found = parse(f"$\\boxed{{{answer}}}$", parsing_timeout=0)
        verdicts.append(float(verify(wanted, found, timeout_seconds=0)))
    return verdicts


def ours(pairs: list[tuple[str, str]]) -> list[float]:
    boxed = [(f"It is $\\boxed{{{answer}}}$.", {"answer": expected}) for answer, expected in pairs]
    return [grade.score for grade in grade_batch("math", boxed)]


def near(answer: str) -> str:
    """Return an answer that is almost this one."""
    if answer.isdigit():
        return str(int(answer) + 1)
    return answer.replace("2", "3") if "2" in answer else f"{answer}+1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--math", type=Path, required=True, help="MATH-500, or MATH itself")
    options = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    grade_batch("math", [("\\boxed{x+1}", {"answer": "1+x"})])  # its processes are ready
    rng = random.Random(0)
    numbers = [(str(rng.randrange(1000)), str(rng.randrange(1000))) for _ in range(NUM_NUMBERS)]
    seconds = []
    for grade in (ours, reference):
        started = time.perf_counter()
        grade(numbers)
        seconds.append(time.perf_counter() - started)
    rates = [NUM_NUMBERS / s for s in seconds]
    print(
        f"numbers     {rates[0]:8,.0f}/s  math-verify {rates[1]:,.0f}/s  {rates[0] / rates[1]:.0f}x"
    )
    answers = [problem.answer for problem in read_math(options.math)]
    for name, given in (
        ("right", answers),
        ("near miss", [near(answer) for answer in answers]),
        ("another's", answers[1:] + answers[:1]),
    ):
        pairs = list(zip(given, answers, strict=True))
        verdicts, theirs = ours(pairs), reference(pairs)
        differ = [pair for pair, a, b in zip(pairs, verdicts, theirs, strict=True) if a != b]
        right = f"{sum(verdicts):.0f} of {len(pairs)} right"
        print(f"{name:11} {right}, differ on {len(differ)} {differ}")


if __name__ == "__main__":
    main()
