"""What long work says of itself: a bar with an ETA on a terminal, plain lines in a log.

Every step also goes to two files in the stage's folder: `metrics.jsonl` (a row a step, rewound on
resume, so it reads as one run) and `status.json` (the latest, which `fretsaw status` shows).
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from fretsaw.stage.own_file import append_row, read_jsonl
from fretsaw.stage.peers import Peers
from fretsaw.stage.whole import write_json, write_text

STATUS_EVERY_S = 1.0
PLAIN_LINE_EVERY_S = 15.0


def say(message: str) -> None:
    """Print one line for the user, on stderr so that results stay alone on stdout.

    Of several processes that run one stage only rank 0 speaks.
    """
    if Peers.from_environment().rank == 0:
        print(message, file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """Write a duration as people do: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """The progress of one stage through `total` steps; without a folder, shown and not written."""

    def __init__(self, stage: str, folder: Path | None = None):
        self.stage, self.folder = stage, folder
        self.phase, self.total, self._first_step = "", 0, 0
        self._started = self._phase_started = time.monotonic()
        self._last_status = self._last_line = 0.0
        self._bar: Any = None
        self._task: Any = None

    def start(self, phase: str, total: int, *, step: int = 0, unit: str = "step") -> None:
        """Begin a phase of `total` steps, of which `step` are done already."""
        self.close()
        self.phase, self.total, self._first_step, self.unit = phase, total, step, unit
        self._phase_started = time.monotonic()
        if sys.stderr.isatty() and Peers.from_environment().rank == 0:
            self._open_bar(step)
        else:
            num = f"{total} {unit}{'' if total == 1 else 's'}"
            going = f"goes on at {unit} {step + 1} of {total}" if step < total else f"{num}, done"
            say(f"{self.stage}: {phase}, {going if step else num}")

    def _open_bar(self, step: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("[bold]{task.description:<10}"),
            TextColumn("{task.fields[phase]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task(
            self.stage, total=self.total, completed=step, phase=self.phase, note=""
        )

    def step(self, step: int, metrics: dict[str, float] | None = None, *, row: bool = True) -> None:
        """Report that `step` steps are done; `row` writes the metrics to metrics.jsonl too."""
        metrics = metrics or {}
        now = time.monotonic()
        done = max(1, step - self._first_step)
        eta_s = (now - self._phase_started) / done * (self.total - step)
        note = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if row and metrics and self.folder is not None:
            row_of = {"phase": self.phase, "step": step, **metrics}
            append_row(self.folder / "metrics.jsonl", row_of)
        is_last = step >= self.total
        is_due = is_last or now - self._last_status > STATUS_EVERY_S
        if self.folder is not None and is_due:
            self._last_status = now
            write_json(
                self.folder / "status.json",
                {
                    "stage": self.stage,
                    "phase": self.phase,
                    "step": step,
                    "total": self.total,
                    "unit": self.unit,
                    "elapsed_s": round(now - self._started, 1),
                    "eta_s": round(eta_s, 1),
                    "metrics": metrics,
                    "pid": os.getpid(),
                    "updated": time.time(),
                },
            )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif is_last or now - self._last_line > PLAIN_LINE_EVERY_S:
            self._last_line = now
            left = "done" if is_last else f"eta {format_seconds(eta_s)}"
            say(f"{self.stage}: {self.phase} {step}/{self.total}  {left}  {note}".rstrip())

    def within(self, note: str) -> None:
        """Say how far a long part of the next step is, on the terminal or in a log alone."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        elif now - self._last_line > PLAIN_LINE_EVERY_S:
            self._last_line = now
            say(f"{self.stage}: {self.phase}, {note}")

    def rewind(self, step: int) -> None:
        """Drop metric rows of this phase that a resumed run is about to write again."""
        if self.folder is None:
            return
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        rows = read_jsonl(path, {"step": int})
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))

    def close(self) -> None:
        """Put the terminal back as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
