"""What would spoil a training, found before it: in a checkpoint, in rows, and in what RL sampled.

A finding is an error where the training would be spoilt by it, else a warning. What a row or a
template is refused for is raised by what reads it, in the words that tuning uses.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.rollout.rows import Row, read_rows
from fretsaw.scenario.free_memory import free_bytes
from fretsaw.sft.examples import Example, spans_of
from fretsaw.sft.lesson import Lesson, first_of_each, heading, read_lesson, summary
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.shown import LEGEND, page, token_lines
from fretsaw.training.step_memory import TrainingShape, training_bytes

ROLLOUTS = "rollouts"  # of a run of `fretsaw rl`
MAX_LEFT_OUT = 0.1  # share of the conversations that are longer than a row
MAX_TRUNCATED = 0.5  # share of sampled answers that did not end
MAX_CONSTANT = 0.5  # share of groups whose rewards are all alike
NUMBERS = ("7", "42", "365", "2024", "10000", "3.14159", "1,000,000", "0.05", "12+345=357")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, by a name that does not change."""

    severity: Literal["error", "warning"]
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.name}: {self.text}"


def preview(settings: SftSettings, inputs: Mapping[str, Path], seed: int) -> str:
    """Return what `tune` would learn and what is wrong with it, as text for the terminal.

    Raises the `ValueError` that it would.
    """
    lesson = read_lesson(settings, inputs, seed)
    return "\n".join(lesson_lines(lesson, findings_of(lesson)))


def lesson_lines(
    lesson: Lesson, findings: Sequence[Finding], *, colour: bool = False
) -> Iterator[str]:
    """Yield a lesson's sizes, its findings, and its first examples token by token."""
    yield from summary(lesson)
    yield ""
    yield from map(str, findings)
    yield f"the first of each kind and mode; {LEGEND}"
    for record, example in first_of_each(lesson):
        yield ""
        yield heading(record, example)
        spans = spans_of(record, lesson.format)
        yield from token_lines(spans, lesson.format.tokenizer, colour=colour)


def lesson_page(lesson: Lesson, findings: Sequence[Finding]) -> str:
    """Return the same as an HTML page, the examples whole."""
    return page(
        "What would be learnt",
        [(finding.severity, str(finding)) for finding in findings],
        list(summary(lesson)),
        [
            (heading(record, example), spans_of(record, lesson.format))
            for record, example in first_of_each(lesson)
        ],
        lesson.format.tokenizer,
    )


# --- rows and a checkpoint ------------------------------------------------------------------------


def findings_of(lesson: Lesson, parent: Path | None = None) -> list[Finding]:
    """Return what is wrong with rows as a checkpoint would learn them.

    With a `parent`, its tokenizer is compared.
    """
    return [
        *_ends(lesson),
        *_lost(lesson),
        *_round_trip(lesson),
        *_left_out(lesson),
        *_modes(lesson),
        *_memory(lesson),
        *(_digits(lesson.format.tokenizer, Tokenizer.from_folder(parent)) if parent else ()),
    ]


def _ends(lesson: Lesson) -> Iterator[Finding]:
    """An answer whose last learnt token ends no turn teaches the model to go on for ever."""
    ends = lesson.format.ends
    bad = [record for record, example in lesson.train if _last_learnt(example) not in ends]
    if bad:
        yield Finding(
            "error",
            "end-not-learnt",
            f"{len(bad):,} of {len(lesson.train):,} conversations, the first {bad[0].where}, do "
            "not end with a learnt token that ends a turn; correct the chat template or "
            "eos_token_id",
        )


def _last_learnt(example: Example) -> int | None:
    learnt = (
        id
        for id, is_learnt in zip(
            reversed(example.token_ids), reversed(example.loss_mask), strict=True
        )
        if is_learnt
    )
    return next(learnt, None)


def _lost(lesson: Lesson) -> Iterator[Finding]:
    """A trace, a call or an answer that the row has must be among what is learnt."""
    without_trace = [r for r, e in lesson.train if r.mode == "on" and not e.num_thinking]
    without_call = [r for r, e in lesson.train if r.messages[-1].tool_calls and not e.num_calls]
    nothing = [r for r, e in lesson.train if not e.num_learnt]
    for name, what, records in (
        ("thinking-lost", "have reasoning of which nothing is learnt", without_trace),
        ("call-not-learnt", "end with a tool call that is not learnt", without_call),
        ("nothing-learnt", "teach nothing", nothing),
    ):
        if records:
            yield Finding(
                "error",
                name,
                f"{len(records):,} of {len(lesson.train):,} conversations, the first "
                f"{records[0].where}, {what}; correct the rows or the chat template",
            )


def _round_trip(lesson: Lesson) -> Iterator[Finding]:
    """What asks for an answer when the model is served must be what stood before it in training."""
    for record, example in lesson.train:
        prompt = lesson.format.prompt_ids(record.messages[:-1], record.mode, record.tools)
        if example.token_ids[: len(prompt)] != prompt:
            yield Finding(
                "error",
                "template-does-not-round-trip",
                f"{record.where}: what asks for the answer in a chat is not what "
                "stands before it in training; correct the chat template",
            )
            return


def _left_out(lesson: Lesson) -> Iterator[Finding]:
    total = len(lesson.train) + len(lesson.heldout) + lesson.num_skipped
    if lesson.num_skipped:
        share = lesson.num_skipped / total
        yield Finding(
            "error" if share > MAX_LEFT_OUT else "warning",
            "too-long",
            f"{lesson.num_skipped:,} of {total:,} conversations ({share:.1%}) are longer than "
            f"{lesson.row_len:,} tokens and would be left out; give a longer --seq-len",
        )


def _modes(lesson: Lesson) -> Iterator[Finding]:
    modes = {record.mode for record, _ in lesson.train}
    if len(modes) == 1:
        yield Finding(
            "warning",
            "one-mode",
            f"all conversations have reasoning {modes.pop()}; the other mode will be forgotten "
            "unless an earlier tuning taught it and this one is short",
        )


def _memory(lesson: Lesson) -> Iterator[Finding]:
    settings = lesson.settings
    micro = max(1, settings.micro_batch_tokens // lesson.row_len) * lesson.row_len
    needed = training_bytes(
        TrainingShape(
            student=lesson.config,
            update=settings.update,
            lora=settings.lora,
            micro_batch_tokens=micro,
            seq_len=lesson.row_len,
        )
    ).peak
    free = free_bytes()
    if needed > free:
        yield Finding(
            "error",
            "memory",
            f"the longest micro-batch, {micro:,} tokens in float32, takes "
            f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of the host are free; lower "
            "--seq-len and --micro-batch-tokens, or train factors (--lora-rank)",
        )


def _digits(own: Tokenizer, parent: Tokenizer) -> Iterator[Finding]:
    """Arithmetic that was learnt over one cut of numbers is not known over another."""
    for number in NUMBERS:
        ours, theirs = (
            [one.token_bytes(id) for id in one.encode_raw(number)] for one in (own, parent)
        )
        if ours != theirs:
            cut = ["|".join(piece.decode(errors="replace") for piece in p) for p in (ours, theirs)]
            yield Finding(
                "error",
                "digits-split-otherwise",
                f"the tokenizer cuts {number} as {cut[0]}, its parent's as {cut[1]}; take the "
                "parent's tokenizer.json",
            )
            return


# --- what a run of reinforcement sampled ----------------------------------------------------------


def read_rollouts(run: Path) -> list[Row]:
    """Return the last rollouts of a run of `fretsaw rl`. Raises `ValueError` where there are none.

    A table that is not whole is refused as `read_rows` says.
    """
    files = sorted((run / ROLLOUTS).glob("*.parquet"))
    if not files:
        raise ValueError(
            f"{run}: no {ROLLOUTS}/*.parquet, so this is no run of `fretsaw rl`; give one, or a "
            "checkpoint"
        )
    return read_rows(files[-1])


def findings_of_rollouts(rows: Sequence[Row]) -> list[Finding]:
    """Return what keeps sampled answers from teaching anything."""
    groups: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row.reward)
    num_constant = sum(len(set(rewards)) == 1 for rewards in groups.values())
    num_cut = sum(not row.is_finished for row in rows)
    found = []
    if num_constant > MAX_CONSTANT * len(groups):
        found.append(
            Finding(
                "error" if num_constant == len(groups) else "warning",
                "constant-reward",
                f"in {num_constant:,} of {len(groups):,} groups all answers have one reward, so "
                "they teach nothing; take easier or harder problems, or more answers a group",
            )
        )
    if num_cut > MAX_TRUNCATED * len(rows):
        found.append(
            Finding(
                "error" if num_cut == len(rows) else "warning",
                "answers-truncated",
                f"{num_cut:,} of {len(rows):,} answers ({num_cut / len(rows):.1%}) did not end; "
                "raise max_tokens, or tune until answers end",
            )
        )
    return found
