"""Tokenised documents on disk, until all are there and their order is known.

In memory stand 18 bytes a document; their tokens are read back from a file without a name.
"""

import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from fretsaw.data.loader import token_dtype


class Spool:
    """Documents with their source and the fingerprint of their text."""

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._sizes, self._prints, self._sources = array("q"), array("q"), array("H")
        self.num_tokens = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def add(self, source: int, print_: int, token_ids: Sequence[int]) -> None:
        """Take a document."""
        self._file.write(np.asarray(token_ids, dtype=np.uint32).tobytes())
        self._sizes.append(len(token_ids))
        self._prints.append(print_)
        self._sources.append(source)
        self.num_tokens += len(token_ids)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each document."""
        return np.array(self._sizes, dtype=np.int64)

    @property
    def prints(self) -> np.ndarray:
        """Fingerprint of each document's text."""
        return np.array(self._prints, dtype=np.int64)

    @property
    def sources(self) -> np.ndarray:
        """Number of each document's source."""
        return np.array(self._sources, dtype=np.int64)

    def write(
        self, path: Path, order: Sequence[int], max_tokens: int, vocab_size: int
    ) -> list[tuple[int, int]]:
        """Write documents in an order, the last cut at `max_tokens`; return (document, tokens)."""
        sizes = self.sizes
        starts = sizes.cumsum() - sizes
        written: list[tuple[int, int]] = []
        at = 0
        total = min(max_tokens, int(sizes[order].sum()))
        out = open_memmap(path, mode="w+", dtype=token_dtype(vocab_size), shape=(total,))
        self._file.flush()
        for document in order:
            if at == total:
                break
            take = min(int(sizes[document]), total - at)
            self._file.seek(4 * int(starts[document]))
            ids = np.frombuffer(self._file.read(4 * take), dtype=np.uint32)
            if take and ids.max() >= vocab_size:
                raise ValueError(
                    f"{path}: token id {ids.max()} does not fit a vocabulary of {vocab_size}; "
                    "tokenize with the model's own tokenizer"
                )
            out[at : at + take] = ids
            at += take
            written.append((document, take))
        out.flush()
        return written
