"""How long stages really take beside what closed forms say: told by stages that have run.

One factor for each kind of stage, from a run on the same hardware; of a rehearsal, which does two
amounts of work of every kind, a start and a factor. No torch.
"""

import itertools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fretsaw.stage.artifact import MANIFEST, read_manifest
from fretsaw.stage.own_file import read_json

START_S = 4.0  # a stage is a process of its own: imports


@dataclass(frozen=True)
class StageTime:
    """One stage that has run."""

    kind: str
    foreseen: float  # seconds
    measured: float  # seconds


@dataclass(frozen=True)
class Speeds:
    """By kind of stage: seconds = start + factor * foreseen."""

    lines: dict[str, tuple[float, float]] = field(default_factory=dict)  # kind -> start, factor
    start_s: float = START_S
    source: str = "closed forms alone (--measured RUN or --rehearse would tell)"

    def seconds(self, kind: str, foreseen: float) -> tuple[float, bool]:
        """Return how long a stage will take, and whether its kind has told."""
        start, factor = self.lines.get(kind, (0.0, 1.0))
        return start + factor * foreseen, kind in self.lines


def factors(points: Iterable[StageTime]) -> dict[str, tuple[float, float]]:
    """Return one factor a kind: all that was measured over all that was foreseen."""
    by_kind: dict[str, list[StageTime]] = {}
    for point in points:
        by_kind.setdefault(point.kind, []).append(point)
    return {
        kind: (0.0, sum(p.measured for p in own) / foreseen)
        for kind, own in by_kind.items()
        if (foreseen := sum(p.foreseen for p in own)) > 0
    }


def lines_through(points: Iterable[StageTime]) -> dict[str, tuple[float, float]]:
    """Return the line through the least and the most work of every kind.

    Where the more work took no longer, noise hid it: then it is all factor, as in `factors`.
    """
    found = {}
    by_kind: dict[str, list[StageTime]] = {}
    for point in points:
        by_kind.setdefault(point.kind, []).append(point)
    for kind, own in by_kind.items():
        least, most = (f(own, key=lambda p: p.foreseen) for f in (min, max))
        slope = (most.measured - least.measured) / ((most.foreseen - least.foreseen) or 1.0)
        start = most.measured - slope * most.foreseen
        if slope > 0 <= start:
            found[kind] = (start, slope)
        else:
            found |= factors(own)
    return found


def finished_times(run: Path) -> dict[str, tuple[float, float]]:
    """Return of every finished stage of a run: seconds, and when it ended (seconds since 1970).

    Raises `ValueError` for a folder that is no run, or one in which nothing is finished.
    """
    if not (run / "run.json").is_file():
        raise ValueError(f"{run}: no run of a recipe (no run.json); give the --out of one")
    found = {}
    for name in read_json(run / "run.json", {"stages": [str]})["stages"]:
        if (run / name / MANIFEST).is_file():
            told = read_manifest(run / name)["run"]
            ended = datetime.strptime(told["finished"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
            found[name] = (told["wall_s"], ended)
    if not found:
        raise ValueError(f"{run}: no stage is finished, so nothing tells its speed; let it run")
    return found


def start_of(times: Iterable[tuple[float, float]]) -> float:
    """Return the seconds between the end of a stage and the begin of the next, in the median."""
    ended = sorted(times, key=lambda one: one[1])
    gaps = [then[1] - then[0] - before[1] for before, then in itertools.pairwise(ended)]
    near = [gap for gap in gaps if 0 <= gap < 60]  # a longer one is a run that was taken up again
    return statistics.median(near) if near else START_S
