"""Figures of held-out rows by the source of their text."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fretsaw.data import loader
from fretsaw.stage.own_file import read_json

Shares = Mapping[str, Float[np.ndarray, " rows"]]  # by source: of each row's targets, those from it


def source_names(corpus: Path) -> list[str]:
    """Return what a corpus's sources are called; nothing where it has but one."""
    table = corpus / loader.SOURCES
    names = [row["name"] for row in read_json(table, [{"name": str}])] if table.is_file() else []
    return names if len(names) > 1 else []


def source_shares(corpus: Path, seq_len: int, num_rows: int) -> Shares:
    """Return what share of each of the first held-out rows is a source's; {} for one source."""
    names = source_names(corpus)
    sources = loader.source_rows(corpus, seq_len, num_rows) if names else None
    return {name: (sources == number).mean(1) for number, name in enumerate(names)}


def means_by_source(values: Float[np.ndarray, " rows"], shares: Shares) -> dict[str, float]:
    """Return the mean of each source, where a row counts as much as it is of that source."""
    own = {name: share[: len(values)] for name, share in shares.items()}
    return {name: float(values @ share / share.sum()) for name, share in own.items() if share.any()}
