"""What is put to the score: which names, in place of which subblocks."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fretsaw.model.config import ModelConfig
from fretsaw.model.place import Place
from fretsaw.puzzle.library.runs import Group, fused_width
from fretsaw.puzzle.scores.scoreboard import Names
from fretsaw.puzzle.settings import ScoreSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.stage.progress import say

Text = Literal["judge", "score"]  # what refits are judged on, what alternatives are scored on
Jobs = dict[Place, list[Names]]  # where -> what to put from there on


@dataclass(frozen=True)
class Replacement:
    """Names to put in place of the subblocks from `at` on, judged on some rows of text.

    One name such as "3-5" stands for the FFNs of those layers fused, no attention between them.
    """

    rows: tuple[int, int]
    at: Place
    names: Names
    by_estimate: bool = False  # replayed too where the estimate does not hold


@dataclass(frozen=True)
class GradientPart:
    """Rows of a text whose gradients are to be written, from `first` on."""

    text: Text
    first: int


def span_of(names: Names) -> Group | None:
    """Return the layers whose FFNs are fused, where that is what the names say."""
    return Group.parse(names[0]) if "-" in names[0] else None


def all_jobs(config: ModelConfig, settings: ScoreSettings, seed: int) -> Jobs:
    """Return what is scored: every alternative alone and a few pairs, or every pair of a layer."""
    jobs: Jobs = {}
    for i, block in enumerate(config.blocks):
        attention, ffn = layer_alternatives(block, settings.space)
        pairs = [(a, f) for a in attention for f in ffn]
        if settings.exact:
            jobs[Place(i)] = list(pairs)
            continue
        changed = [(a, f) for a, f in pairs if a != attention[0] and f != ffn[0]]
        count = min(settings.joint_pairs, len(changed))
        sampled = random.Random(f"{seed} {i}").sample(changed, count)
        spans = spans_from(config, i, settings.fused)
        jobs[Place(i)] = [*((a,) for a in attention), *sampled]
        jobs[Place(i, "ffn")] = [*((f,) for f in ffn), *((str(span),) for span in spans)]
    return jobs


def spans_from(config: ModelConfig, first: int, most: int) -> list[Group]:
    """Return the groups of up to `most` layers from `first` on that have an FFN to fuse each."""
    found = []
    for last in range(first, min(first + most, config.num_hidden_layers)):
        if config.blocks[last].ffn != "swiglu":
            break
        found.append(Group(first, last))
    return found[1:]


def without_wide_spans(jobs: Jobs, config: ModelConfig, most: int) -> Jobs:
    """Leave out, and say so, spans whose fused FFN is too wide to be repaired in memory."""

    def width(names: Names) -> int:
        span = span_of(names)
        return fused_width(config.blocks, span) if span else 0

    kept = {at: [n for n in names if width(n) <= most] for at, names in jobs.items()}
    num_left_out = sum(map(len, jobs.values())) - sum(map(len, kept.values()))
    if num_left_out:
        say(
            f"score: {num_left_out} spans are left out: to repair an FFN more than {most} wide "
            "takes more memory than is free"
        )
    return kept


def rounds(num_rows: int, first: int) -> Iterator[tuple[int, int]]:
    """Yield the rows of each round: the first few, then as many again as there are already."""
    start, stop = 0, min(first, num_rows) or num_rows
    while start < num_rows:
        yield start, stop
        start, stop = stop, min(2 * stop, num_rows)
