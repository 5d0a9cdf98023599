"""IFEval's checkers: ours against lm-evaluation-harness's, verdict by verdict, and their speed.

    python benchmarks/instructions.py --data ../shared/data

To each prompt of IFEval come texts that models wrote, empty and odd ones, and texts bent
towards its instructions. Prints how many verdicts agree by instruction, how often the repaired
rules differ from the reference's, and the time of both. The number of sentences, which needs a
model that is a download, is compared with nltk's Punkt trained on the texts themselves.
"""

import argparse
import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from ifeval_oracle import answers_to, is_compared, load_oracle, oracle_verdicts, texts_of_models

from fretsaw.grade.instructions.grade import differences, judge
from fretsaw.grade.instructions.sentences import count_sentences

ROWS = "ifeval/input_data_lines_001-299.jsonl"
NUM_SPLITS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # the reference tells of each text without a language
    texts = texts_of_models(arguments.data)
    rows = [json.loads(line) for line in (arguments.data / ROWS).read_text().splitlines()]
    asked = [(row, answer) for row in rows for answer in answers_to(row, texts, arguments.seed)]
    with pytest.MonkeyPatch.context() as patch:
        compare(asked, load_oracle(patch))
    show_differences(asked)
    compare_sentences(texts)


def compare(asked: list[tuple[dict[str, Any], str]], oracle: Any) -> None:
    """Print the verdicts that agree, and the times of the same answers, interleaved."""
    equal, other = Counter[str](), Counter[str]()
    ours_s, theirs_s = [], []
    judge(asked[0][1], {**asked[0][0], "rules": "reference"})
    for row, answer in asked:
        started = time.perf_counter()
        ours = judge(answer, {**row, "rules": "reference"})
        ours_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        theirs = oracle_verdicts(oracle, row, answer)
        theirs_s.append(time.perf_counter() - started)
        for verdict, kwargs, wanted in zip(ours, row["kwargs"], theirs, strict=True):
            if is_compared(verdict.id, kwargs):
                is_equal = (verdict.strict, verdict.loose) == wanted
                (equal if is_equal else other)[verdict.id] += 1
    print(f"{len(asked)} answers to {len({row['key'] for row, _ in asked})} prompts")
    print(f"verdicts of {len(equal | other)} types: equal {equal.total()}, other {other.total()}")
    for id in other:
        print(f"  {id}: {other[id]} of {other[id] + equal[id]} differ")
    splits = zip(
        np.array_split(ours_s, NUM_SPLITS), np.array_split(theirs_s, NUM_SPLITS), strict=True
    )
    ratios = sorted(theirs.sum() / ours.sum() for ours, theirs in splits)
    print(
        f"ours {len(asked) / sum(ours_s):.0f} answers/s, lm-evaluation-harness "
        f"{len(asked) / sum(theirs_s):.0f}; ratio {np.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} of {NUM_SPLITS} parts)"
    )


def show_differences(asked: list[tuple[dict[str, Any], str]]) -> None:
    """Print how often the rule sets disagree, by instruction."""
    found = differences([(answer, row) for row, answer in asked])
    total = Counter(id for row, _ in asked for id in row["instruction_id_list"])
    lenient = Counter(one.repaired.id for one in found if one.reference.strict)
    severe = Counter(one.repaired.id for one in found if one.repaired.strict)
    print("instruction: verdicts, strict by the reference alone, by the repaired rules alone")
    for id, count in sorted(total.items()):
        print(f"  {id}: {count}, {lenient[id]}, {severe[id]}")
    print(f"  all: {total.total()}, {lenient.total()}, {severe.total()}")


def compare_sentences(texts: list[str]) -> None:
    """Print how near the numbers of sentences are to Punkt's, trained on these texts."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer

    punkt = PunktSentenceTokenizer(PunktTrainer("\n\n".join(texts)).get_params())
    theirs = [len(list(punkt.span_tokenize(text))) for text in texts]
    off = [
        abs(count_sentences(text, "reference") - count)
        for text, count in zip(texts, theirs, strict=True)
    ]
    equal, near = np.mean([one == 0 for one in off]), np.mean([one <= 1 for one in off])
    print(f"sentences of {len(texts)} texts: {equal:.1%} as Punkt has them, {near:.1%} within one")


if __name__ == "__main__":
    main()
