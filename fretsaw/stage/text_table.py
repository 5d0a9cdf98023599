"""Rows of text as a table for the screen. Standard library only."""

from collections.abc import Iterator, Mapping, Sequence


def aligned(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield the lines of rows that have the same columns: heads first, the first column left."""
    names = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    for cells in (names, *(row.values() for row in rows)):
        first, *others = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        yield "  ".join([f"{first.strip():<{widths[0]}}", *others])
