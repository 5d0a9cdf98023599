"""What tuning would learn, told before it begins: rows by kind and mode, and the first with masks.

No weight is read. A row that tuning would refuse is refused here in the same words.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from fretsaw.chat.reasoning import MODES, check_tags
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint.folder import check_tokenizer, read_config
from fretsaw.data.pack import pack
from fretsaw.data.records import Record
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
MAX_RUN = 60  # tokens shown of a learnt or an unlearnt stretch, half from each of its ends
WIDTH = 92  # columns of text beside the mark
_VISIBLE = {"\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"}
Pair = tuple[Record, Example]


def preview(settings: SftSettings, inputs: Mapping[str, Path], seed: int) -> str:
    """Return what `tune` would learn, as text for the terminal.

    Raises the `ValueError` that it would.
    """
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
    left_out = f", {num_skipped:,} longer than {row_len:,} tokens left out" if num_skipped else ""
    lines = [
        f"{len(train):,} conversations to tune on, {len(heldout):,} held out{left_out}",
        *_sizes([example for _, example in train], settings, row_len),
        told(format, added),
        "",
        *_table(train),
        "",
        "the first of each kind and mode; every token ends with a dot, learnt ones come after >>>",
    ]
    for record, example in _first_of_each(train):
        lines += ["", _heading(record, example), *_token_lines(example, tokenizer)]
    return "\n".join(lines)


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


def _first_of_each(pairs: Sequence[Pair]) -> list[Pair]:
    first: dict[tuple[str, str], Pair] = {}
    for record, example in pairs:
        first.setdefault((record.kind, record.mode), (record, example))
    return list(first.values())[:MAX_SHOWN]


def _heading(record: Record, example: Example) -> str:
    num_tokens, num_learnt = len(example.token_ids), sum(example.loss_mask)
    what = f"{record.kind}, reasoning {record.mode}"
    return f"{record.where} ({what}): {num_tokens:,} tokens, {num_learnt:,} learnt"


def _token_lines(example: Example, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the tokens, a stretch of learnt ones on lines that begin with >>>."""
    marked = zip(example.loss_mask, example.token_ids, strict=True)
    for is_learnt, stretch in groupby(marked, key=lambda pair: pair[0]):
        texts = [_visible(tokenizer, id) for _, id in stretch]
        if len(texts) > MAX_RUN:
            half = MAX_RUN // 2
            left_out = f"[{len(texts) - MAX_RUN:,} more]"
            texts = [*texts[:half], left_out, *texts[-half:]]
        line = ""
        for text in texts:
            if line and len(line) + len(text) > WIDTH:
                yield f"{'>>>' if is_learnt else '   '} {line}"
                line = ""
            line += f"{text}\u00b7"
        yield f"{'>>>' if is_learnt else '   '} {line}"


def _visible(tokenizer: Tokenizer, id: int) -> str:
    """Return a token's text with nothing in it that moves the cursor; bytes as they are."""
    raw = tokenizer.token_bytes(id)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:  # a part of a character
        return "".join(f"<{byte:02x}>" for byte in raw)
    return "".join(_VISIBLE.get(c) or (c if _is_printed(c) else ascii(c)[1:-1]) for c in text)


def _is_printed(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cn", "Co", "Zl", "Zp")
