"""The tokens of a corpus as rows to train on.

A corpus is a folder with `train.npy` and `heldout.npy`: token ids as one flat array, documents
laid end to end in an order of which every beginning is a sample. It is cut into windows of
`seq_len` tokens; a row is a window and the one token after it, so that row[:-1] are the inputs and
row[1:] the targets. Which rows a step sees depends on (seed, step) alone: resuming needs no state.
"""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer, UInt32

Tokens = Integer[np.ndarray, " tokens"]
SOURCES = "sources.json"  # what each source gave to each part
HELDOUT_SOURCES = "heldout_sources.npy"  # for each held-out token, the number of its source


def tokenize(documents: Iterator[list[int]], max_tokens: int) -> UInt32[np.ndarray, " tokens"]:
    """Lay documents end to end up to `max_tokens`; the last may be cut there.

    Fewer tokens come back where the documents run out.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens {max_tokens}: nothing would be read; give at least 1")
    token_ids = array("I")
    while len(token_ids) < max_tokens and (document := next(documents, None)) is not None:
        token_ids.extend(document)
    if not token_ids:
        raise ValueError("data: no documents, so no tokens; give a source with text in it")
    return np.array(token_ids[:max_tokens], dtype=np.uint32)


def write_tokens(path: Path, token_ids: Iterable[int] | Tokens, vocab_size: int) -> None:
    """Write ids to `path` (.npy) in the smallest of uint16 and uint32 that holds the vocabulary."""
    assert path.suffix == ".npy", f"{path}: np.save would append .npy and write elsewhere"
    ids = token_ids if isinstance(token_ids, np.ndarray) else np.array([*token_ids], dtype=np.int64)
    if ids.size == 0:
        raise ValueError(f"{path}: no tokens to write; give a source with text in it")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(
            f"{path}: token ids {ids.min()}..{ids.max()} do not fit a vocabulary of {vocab_size}; "
            "tokenize with the model's own tokenizer"
        )
    np.save(path, ids.astype(token_dtype(vocab_size)))


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Return the smallest type that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def read_tokens(path: Path) -> Tokens:
    """Map a corpus file into memory; only the pages that are used are read."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a corpus has train.npy and heldout.npy")
    tokens = np.load(path, mmap_mode="r")
    if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
        raise ValueError(
            f"{path}: {tokens.dtype} of shape {tokens.shape}, but a corpus is one flat array of "
            "uint16 or uint32; write it with write_tokens"
        )
    return tokens


def num_windows(tokens: Tokens, seq_len: int) -> int:
    """Return how many rows the corpus has; raise ValueError where not even one."""
    if len(tokens) <= seq_len:
        raise ValueError(
            f"data: {len(tokens)} tokens, but one row of seq_len {seq_len} needs {seq_len + 1}; "
            "give more text or lower seq_len"
        )
    return (len(tokens) - 1) // seq_len


def batch(
    tokens: Tokens, *, seed: int, step: int, batch_size: int, seq_len: int
) -> Int64[np.ndarray, "{batch_size} {seq_len}+1"]:
    """Return the rows of an optimizer step, as a pure function of (seed, step).

    Every window is seen once an epoch; a batch may end one epoch and begin the next.
    """
    windows = order(num_windows(tokens, seq_len), batch_size, seed=seed, step=step)
    return gather(tokens, windows, seq_len)


def order(num_items: int, per_step: int, *, seed: int, step: int) -> list[int]:
    """Return the items of a step: steps walk through a fresh permutation of all each epoch."""
    places = range(step * per_step, (step + 1) * per_step)
    epochs = {place // num_items for place in places}
    orders = {e: np.random.default_rng([seed, e]).permutation(num_items) for e in epochs}
    return [int(orders[place // num_items][place % num_items]) for place in places]


def rows(
    tokens: Tokens, seq_len: int, num_rows: int
) -> Int64[np.ndarray, "{num_rows} {seq_len}+1"]:
    """Return the first rows in order, for calibration and held-out loss."""
    available = num_windows(tokens, seq_len)
    if num_rows > available:
        raise ValueError(
            f"data: {num_rows} rows of seq_len {seq_len} asked for, but {len(tokens)} tokens make "
            f"{available}; give more text or ask for fewer rows"
        )
    return gather(tokens, range(num_rows), seq_len)


def first_rows(path: Path, seq_len: int, max_tokens: int) -> Int64[np.ndarray, "rows {seq_len}+1"]:
    """Return the first rows of a corpus file, up to `max_tokens` and at least one."""
    tokens = read_tokens(path)
    return rows(tokens, seq_len, min(max(1, max_tokens // seq_len), num_windows(tokens, seq_len)))


def calibration_rows(
    corpus: Path, seq_len: int, max_tokens: int
) -> Int64[np.ndarray, "rows {seq_len}+1"]:
    """Return the first rows of the training text, `max_tokens` of them.

    Raises ValueError where the text has fewer: what is fitted on less is another result.
    """
    path, asked = corpus / "train.npy", max(1, max_tokens // seq_len)
    tokens = read_tokens(path)
    if (available := num_windows(tokens, seq_len)) < asked:
        raise ValueError(
            f"{path}: {len(tokens)} tokens, {available} rows of seq_len {seq_len}, but calibration "
            f"asks for {asked}; give more text, or fewer tokens or repair_tokens"
        )
    return rows(tokens, seq_len, asked)


def source_rows(corpus: Path, seq_len: int, num_rows: int) -> Int64[np.ndarray, "rows {seq_len}"]:
    """Return the source of every target of the first held-out rows."""
    sources = np.load(corpus / HELDOUT_SOURCES, mmap_mode="r")
    return gather(sources, range(num_rows), seq_len)[:, 1:]


def gather(
    tokens: Tokens, windows: Iterable[int], seq_len: int
) -> Int64[np.ndarray, "rows {seq_len}+1"]:
    """Return the rows of the given windows."""
    cut = [tokens[window * seq_len : (window + 1) * seq_len + 1] for window in windows]
    return np.stack(cut).astype(np.int64)
