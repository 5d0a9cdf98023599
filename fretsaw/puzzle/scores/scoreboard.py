"""The figures of every change that was scored, row by row of the text, on disk as they are made."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fretsaw.data.by_source import Shares, means_by_source
from fretsaw.stage.own_file import append_row, mismatch, read_jsonl

Names = tuple[str, ...]  # what is put in the place of something (and of the next)
Rows = Float[np.ndarray, " rows"]


class Scoreboard:
    """Figures by (number, names): of a subblock and what replaces it, of a child, of a group.

    A second batch of text adds rows to the first.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[tuple[int, Names], dict[str, Rows]] = {}
        self.repairs: dict[tuple[int, Names], dict[str, float | None] | None] = {}
        self._done: set[tuple[int, int]] = set()
        for row in read_jsonl(path, list):  # one that cannot be read is scored again
            if len(row) == 3 and not mismatch(row, [(int, list)]):
                self._take(*row)

    def has(self, first: int, number: int) -> bool:
        """Whether a number is scored on the text from row `first` on."""
        return (first, number) in self._done

    def add(self, first: int, number: int, scored: Mapping[Names, Mapping]) -> None:
        """Keep what a number's changes gave: `figures` by name, lists over rows, and `repair`."""
        as_json = [[list(names), entry] for names, entry in scored.items()]
        append_row(self.path, [first, number, as_json])
        self._take(first, number, as_json)

    def changes(self) -> list[tuple[int, Names]]:
        """Return what is scored, in the order of the numbers, whoever was done first."""
        return sorted(self.rows, key=lambda key: key[0])

    def is_replayed(self, key: tuple[int, Names]) -> bool:
        """Whether a change's figures are those of replay; else its KL is an estimate."""
        return "top1" in self.rows[key]

    def adopt(self, other: "Scoreboard") -> None:
        """Take another board's figures, in the place of those of the same name."""
        for key, rows in other.rows.items():
            self.rows[key] = self.rows[key] | rows

    def _take(self, first: int, number: int, scored: list) -> None:
        self._done.add((first, number))
        for names, entry in scored:
            key = (number, tuple(names))
            before = self.rows.get(key, {})
            self.repairs[key] = entry["repair"]
            self.rows[key] = {
                name: np.concatenate([before.get(name, np.empty(0)), values])
                for name, values in entry["figures"].items()
            }

    def mean(self, number: int, names: Names, metric: str, rows: int | None = None) -> float:
        """Return the mean over all rows, or the first so many."""
        return float(self.rows[number, names][metric][:rows].mean())

    def by_source(
        self, number: int, names: Names, metric: str, shares: Shares
    ) -> dict[str, dict[str, float]]:
        """Return the mean of each source of the text, as it is written; {} for one source."""
        means = means_by_source(self.rows[number, names][metric], shares)
        return {"by_source": means} if means else {}

    def stderr(self, number: int, names: Names, metric: str) -> float:
        """Return the standard error of that mean."""
        rows = self.rows[number, names][metric]
        return float(rows.std(ddof=1) / len(rows) ** 0.5) if len(rows) > 1 else 0.0
