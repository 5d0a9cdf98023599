"""The figures of every change that was scored, row by row of the text, on disk as they are made."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

Names = tuple[str, ...]  # what is put in place of subblock number `at` (and the next)
Rows = Float[np.ndarray, " rows"]


class Scoreboard:
    """Figures by (number of the subblock, names); a second batch of text adds rows to the first."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[tuple[int, Names], dict[str, Rows]] = {}
        self.repairs: dict[tuple[int, Names], dict[str, float | None] | None] = {}
        self._done: set[tuple[int, int]] = set()
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    first, at, scored = json.loads(line)
                except ValueError:  # the line that was being written when the process was killed
                    continue
                self._take(first, at, scored)

    def has(self, first: int, at: int) -> bool:
        """Whether a subblock is scored on the text from row `first` on."""
        return (first, at) in self._done

    def add(self, first: int, at: int, scored: Mapping[Names, Mapping]) -> None:
        """Keep what a subblock's changes gave: `figures` by name, lists over rows, and `repair`."""
        as_json = [[list(names), entry] for names, entry in scored.items()]
        with self.path.open("a") as file:
            file.write(json.dumps([first, at, as_json]) + "\n")
        self._take(first, at, as_json)

    def changes(self) -> list[tuple[int, Names]]:
        """Return what is scored, in the order of the subblocks, whoever was done first."""
        return sorted(self.rows, key=lambda key: key[0])

    def _take(self, first: int, at: int, scored: list) -> None:
        self._done.add((first, at))
        for names, entry in scored:
            key = (at, tuple(names))
            before = self.rows.get(key, {})
            self.repairs[key] = entry["repair"]
            self.rows[key] = {
                name: np.concatenate([before.get(name, np.empty(0)), values])
                for name, values in entry["figures"].items()
            }

    def mean(self, at: int, names: Names, metric: str, rows: int | None = None) -> float:
        """Return the mean over all rows, or the first so many."""
        return float(self.rows[at, names][metric][:rows].mean())

    def stderr(self, at: int, names: Names, metric: str) -> float:
        """Return the standard error of that mean."""
        rows = self.rows[at, names][metric]
        return float(rows.std(ddof=1) / len(rows) ** 0.5) if len(rows) > 1 else 0.0
