"""What tuning would learn: rows by kind and mode, tokens, and the first examples with masks.

No weight is read. A row that tuning would refuse is refused here in the same words.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fretsaw.chat.reasoning import MODES, check_tags
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint.folder import check_tokenizer, read_config
from fretsaw.data.pack import pack
from fretsaw.data.records import Record
from fretsaw.model.config import ModelConfig
from fretsaw.sft.examples import (
    NONE_LEFT,
    Example,
    conversations,
    example_of,
    is_too_long,
    row_length,
)
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.taught import taught_format, told

MAX_SHOWN = 4  # examples, the first of each kind and mode
Pair = tuple[Record, Example]


@dataclass(frozen=True)
class Lesson:
    """Conversations as a checkpoint would learn them."""

    settings: SftSettings
    config: ModelConfig
    format: ChatFormat
    added: list[str]  # tokens that the checkpoint lacks
    row_len: int
    train: list[Pair]
    heldout: list[Pair]
    num_skipped: int  # longer than a row
    seed: int

    @property
    def examples(self) -> list[Example]:
        """What is tuned on, each once."""
        return [example for _, example in self.train]


def read_lesson(settings: SftSettings, inputs: Mapping[str, Path], seed: int) -> Lesson:
    """Return what `tune` would learn. Raises the `ValueError` that it would."""
    model = inputs["model"]
    config, tokenizer = read_config(model), Tokenizer.from_folder(model)
    check_tokenizer(tokenizer, config)
    check_tags(tokenizer)
    format, added = taught_format(model, tokenizer)
    row_len = row_length(settings, config)
    kept: list[list[Pair]] = []  # to tune on, held out
    num_skipped = 0
    for records in conversations(settings, inputs, seed, format.toggle):
        pairs = [(record, example_of(record, format)) for record in records]
        fitting = [pair for pair in pairs if not is_too_long(*pair, row_len, settings.too_long)]
        num_skipped += len(pairs) - len(fitting)
        kept.append(fitting)
    train, heldout = kept
    if not train:
        raise ValueError(NONE_LEFT)
    return Lesson(settings, config, format, added, row_len, train, heldout, num_skipped, seed)


def summary(lesson: Lesson) -> Iterator[str]:
    """Yield how much would be learnt, in what format, and the rows counted by kind and mode."""
    skipped = f", {lesson.num_skipped:,} longer than {lesson.row_len:,} tokens left out"
    yield (
        f"{len(lesson.train):,} conversations to tune on, {len(lesson.heldout):,} held out"
        f"{skipped if lesson.num_skipped else ''}"
    )
    yield from _sizes(lesson.examples, lesson.settings, lesson.row_len)
    yield told(lesson.format, lesson.added)
    yield ""
    yield from _table(lesson.train)


def first_of_each(lesson: Lesson) -> list[Pair]:
    """Return the first conversation of each kind and mode, a few at most."""
    first: dict[tuple[str, str], Pair] = {}
    for record, example in lesson.train:
        first.setdefault((record.kind, record.mode), (record, example))
    return list(first.values())[:MAX_SHOWN]


def heading(record: Record, example: Example) -> str:
    """Return a line that says what an example is."""
    num_tokens, num_learnt = len(example.token_ids), sum(example.loss_mask)
    what = f"{record.kind}, reasoning {record.mode}"
    return f"{record.where} ({what}): {num_tokens:,} tokens, {num_learnt:,} learnt"


def _sizes(examples: Sequence[Example], settings: SftSettings, row_len: int) -> Iterator[str]:
    lengths = [len(example.token_ids) for example in examples]
    num_learnt = sum(sum(example.loss_mask) for example in examples)
    num_rows = len(pack(lengths, row_len))
    rows_per_step = min(num_rows, max(1, settings.batch_tokens // row_len))
    num_steps = -(-settings.epochs * num_rows // rows_per_step)
    share = num_learnt / sum(lengths)
    yield f"{sum(lengths):,} tokens, of which {num_learnt:,} ({share:.1%}) are learnt"
    yield f"packed rows: {num_rows:,} of {row_len:,} tokens; steps: {num_steps:,}"


def _table(pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield the rows' kinds and what they hold, counted by mode."""
    counted = {mode: Counter[str]() for mode in MODES}
    for record, example in pairs:
        counted[record.mode].update([f"rows of {record.kind}", *_holds(record, example)])
    total = counted["on"] + counted["off"]
    names = sorted(total, key=lambda name: (not name.startswith("rows"), -total[name], name))
    width = max(map(len, names))
    yield f"{'reasoning':{width}}  {'on':>9} {'off':>9}"
    for name in names:
        yield f"{name:{width}}  " + " ".join(f"{counted[mode][name]:9,}" for mode in MODES)


def _holds(record: Record, example: Example) -> Iterator[str]:
    num_answers = sum(message.role == "assistant" for message in record.messages)
    num_learnt = sum(is_learnt for is_learnt, _ in groupby(example.loss_mask))
    is_there = {
        "with several answers": num_answers > 1,
        "with a system text": record.messages[0].role == "system",
        "with tools": bool(record.tools),
        "with tool calls": any(message.tool_calls for message in record.messages),
        "with answers that are not learnt": num_learnt < num_answers,
    }
    return (name for name, is_so in is_there.items() if is_so)
