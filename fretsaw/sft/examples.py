"""Conversations as token ids with their loss mask: which tokens are to be learnt.

`render` gives spans and says which are targets, `loss_mask` is that for every token, and in packed
rows (`batch_of`) it becomes the positions at which the loss is taken.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fretsaw.chat.reasoning import Mode
from fretsaw.chat.renderer import ChatFormat, Span
from fretsaw.chat.toggle import Toggle
from fretsaw.data import world
from fretsaw.data.pack import Batch, batch_of
from fretsaw.data.records import Record, read_records
from fretsaw.model.config import ModelConfig
from fretsaw.sft.settings import MAX_ROW, SftSettings
from fretsaw.stage.progress import say

NONE_LEFT = "sft: no conversations are left; give more, or a longer seq_len"


@dataclass(frozen=True)
class Example:
    """A conversation as token ids, and which of them are to be learnt."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    mode: Mode


def row_length(settings: SftSettings, config: ModelConfig) -> int:
    """Return the tokens of one packed row; raise `ValueError` beyond the model's context."""
    context = config.max_position_embeddings
    row_len = settings.seq_len or min(MAX_ROW, context)
    if row_len > context:
        raise ValueError(f"seq_len {row_len}: the model's context is {context}; give at most that")
    return row_len


def read_examples(
    settings: SftSettings,
    inputs: Mapping[str, Path],
    format: ChatFormat,
    row_len: int,
    seed: int,
) -> tuple[list[Example], list[Example], int]:
    """Return what is tuned on, what is held out, and how many of the first were too long.

    Raises `ValueError` where nothing is left to tune on.
    """
    records, heldout_records = conversations(settings, inputs, seed, format.toggle)
    train, num_skipped = encode(records, format, row_len, settings.too_long)
    heldout, _ = encode(heldout_records, format, row_len, settings.too_long)
    if not train:
        raise ValueError(NONE_LEFT)
    return train, heldout, num_skipped


def conversations(
    settings: SftSettings, inputs: Mapping[str, Path], seed: int, toggle: Toggle = "v1"
) -> tuple[list[Record], list[Record]]:
    """Return the conversations to tune on and those held out, by their questions."""
    if settings.source == "world":
        num_heldout = round(settings.heldout_share * settings.num_rows)
        sizes: dict[world.Split, int] = {"train": settings.num_rows, "heldout": num_heldout}
        limits = {"max_steps": settings.max_steps, "max_value": settings.max_value}
        train, heldout = (
            list(world.conversations(seed, split, size, **limits)) for split, size in sizes.items()
        )
        return train, heldout
    names = sorted((name for name in inputs if name.startswith("data")), key=lambda n: (len(n), n))
    if not names:
        raise ValueError("sft: no conversations; give --data FILES, or --source world")
    records = list(read_records([str(inputs[name]) for name in names], toggle))
    heldout = [record for record in records if is_heldout(record, settings.heldout_share)]
    return [record for record in records if not is_heldout(record, settings.heldout_share)], heldout


def is_heldout(record: Record, share: float) -> bool:
    """Whether a conversation is held out: told by its question, so both modes of it go together."""
    question = next(m.content for m in record.messages if m.role == "user")
    return zlib.crc32(question.encode()) % 10_000 < 10_000 * share


def encode(
    records: Iterable[Record], format: ChatFormat, row_len: int, too_long: str
) -> tuple[list[Example], int]:
    """Return the examples, and how many conversations were longer than a row and skipped."""
    examples, num_skipped = [], 0
    for record in records:
        example = example_of(record, format)
        if is_too_long(record, example, row_len, too_long):
            num_skipped += 1
        else:
            examples.append(example)
    if num_skipped:
        say(f"sft: {num_skipped} conversations are longer than {row_len} tokens and are left out")
    return examples, num_skipped


def example_of(record: Record, format: ChatFormat) -> Example:
    """Return a conversation as it is learnt in a format.

    Raises ValueError with the row's place where the format refuses it.
    """
    try:
        spans = format.render(record.messages, record.mode, record.tools, record.unlearnt)
    except ValueError as error:
        raise ValueError(f"{record.where}: {error}") from error
    token_ids = tuple(id for span in spans for id in span.token_ids)
    return Example(token_ids, loss_mask(spans), record.mode)


def is_too_long(record: Record, example: Example, row_len: int, too_long: str) -> bool:
    """Whether an example exceeds a row; raise `ValueError` where such are refused."""
    num_tokens = len(example.token_ids)
    if num_tokens > row_len and too_long == "refuse":
        raise ValueError(
            f"{record.where}: {num_tokens} tokens, but a row holds {row_len}; give a longer "
            "--seq-len, or leave such rows out with --too-long skip"
        )
    return num_tokens > row_len


def loss_mask(spans: Iterable[Span]) -> tuple[bool, ...]:
    """Return for every token of a conversation whether it is learnt: those of the target spans."""
    return tuple(span.is_target for span in spans for _ in span.token_ids)


def micro_batches(
    examples: Sequence[Example], rows: Sequence[Sequence[int]], row_len: int, micro_rows: int
) -> list[Batch]:
    """Lay examples out in packed rows, cut into batches of `micro_rows`."""
    return [
        batch_examples(examples, rows[at : at + micro_rows], row_len)
        for at in range(0, len(rows), micro_rows)
    ]


def batch_examples(
    examples: Sequence[Example], rows: Sequence[Sequence[int]], row_len: int
) -> Batch:
    """Lay examples out in packed rows; the batch's positions are those of the loss masks."""
    token_ids = [example.token_ids for example in examples]
    loss_masks = [example.loss_mask for example in examples]
    return batch_of(token_ids, loss_masks, rows, row_len)
