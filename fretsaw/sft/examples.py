"""Conversations as token ids with their loss mask: which tokens are to be learnt.

`render` gives spans and says which are targets, `loss_mask` is that for every token, and in packed
rows (`batch_of`) it becomes the positions at which the loss is taken.
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

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
    source: str
    num_thinking: int = 0  # learnt tokens of a trace
    num_calls: int = 0  # learnt tokens that call tools

    @property
    def num_learnt(self) -> int:
        """Tokens that are learnt; the first of a conversation is foretold by nothing."""
        return sum(self.loss_mask[1:])


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
    """Return what an epoch is tuned on, what is held out, and how many of the first were too long.

    Raises `ValueError` where nothing is left to tune on.
    """
    records, heldout_records = conversations(settings, inputs, seed, format.toggle)
    train, num_skipped = encode(records, format, row_len, settings.too_long)
    heldout, _ = encode(heldout_records, format, row_len, settings.too_long)
    if not train:
        raise ValueError(NONE_LEFT)
    return weighted(train, weights_of(settings, inputs), seed), heldout, num_skipped


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
    records = [
        replace(record, source=name)
        for name, path in sources_in(inputs).items()
        for record in read_records([str(path)], toggle)
    ]
    if not records:
        raise ValueError("sft: no conversations; give --data FILES, or --source world")
    heldout = [record for record in records if is_heldout(record, settings.heldout_share)]
    return [record for record in records if not is_heldout(record, settings.heldout_share)], heldout


def sources_in(inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Return the data files in order by their names, one that is there already with a number."""
    keys = sorted((key for key in inputs if key.startswith("data")), key=lambda k: (len(k), k))
    named: dict[str, Path] = {}
    for key in keys:
        name = inputs[key].name
        named[f"{name} ({key})" if name in named else name] = inputs[key]
    return named


def weights_of(settings: SftSettings, inputs: Mapping[str, Path]) -> dict[str, float]:
    """Return the files' weights by name; none where every row is seen once an epoch.

    Raises `ValueError` where there are not as many weights as files.
    """
    names = list(sources_in(inputs))
    if settings.weights and len(settings.weights) != len(names):
        raise ValueError(
            f"weights: {len(settings.weights)}, but there are {len(names)} data files; give one "
            "for each"
        )
    return dict(zip(names, settings.weights, strict=False))


def weighted(examples: Sequence[Example], weights: Mapping[str, float], seed: int) -> list[Example]:
    """Return what one epoch sees: a file's examples as often as its weight says.

    Of a fraction so many of them, rounded up, are drawn by the seed.
    """
    if not weights:
        return list(examples)
    seen: list[Example] = []
    for number, (source, weight) in enumerate(weights.items()):
        own = [example for example in examples if example.source == source]
        times, share = divmod(weight, 1)
        order = np.random.default_rng([seed, number]).permutation(len(own))
        drawn = sorted(order[: math.ceil(share * len(own))])
        seen += own * int(times) + [own[i] for i in drawn]
    return seen


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
    """Return a conversation as it is learnt in a format. Raises as `spans_of` does."""
    spans = spans_of(record, format)
    return Example(
        tuple(id for span in spans for id in span.token_ids),
        loss_mask(spans),
        record.mode,
        record.source,
        num_thinking=sum(span.num_thinking for span in spans),
        num_calls=sum(span.num_calls for span in spans),
    )


def spans_of(record: Record, format: ChatFormat) -> list[Span]:
    """Return a conversation as a format writes it.

    Raises ValueError with the row's place where the format refuses it.
    """
    try:
        return format.render(record.messages, record.mode, record.tools, record.unlearnt)
    except ValueError as error:
        raise ValueError(f"{record.where}: {error}") from error


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
