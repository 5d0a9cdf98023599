"""What long work says of itself, and the rows it keeps of its steps."""

import json
from pathlib import Path

import pytest

from fretsaw.stage.progress import Progress


@pytest.mark.parametrize(
    ("step", "total", "unit", "said"),
    [
        (0, 5, "step", "sft: tuning, 5 steps"),
        (0, 1, "answer", "sft: tuning, 1 answer"),
        (3, 5, "step", "sft: tuning, goes on at step 4 of 5"),
        (4, 5, "layer", "sft: tuning, goes on at layer 5 of 5"),
        (5, 5, "step", "sft: tuning, 5 steps, done"),
    ],
)
def test_a_phase_says_where_it_begins(capfd, step: int, total: int, unit: str, said: str) -> None:
    progress = Progress("sft")
    progress.start("tuning", total, step=step, unit=unit)
    progress.step(step + 1)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == said
    assert f" {step + 1}/{total}" in lines[1]


def lines_of(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def rows(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in lines_of(folder)]


def test_rows_that_were_cut_are_dropped_with_those_that_come_again(tmp_path: Path) -> None:
    progress = Progress("sft", tmp_path)
    progress.start("tuning", 5)
    for step in (1, 2, 3):
        progress.step(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"phase": "tun\xff{"step": 2}\n[]\n{"step": "2"}\nnull\n{"step": 1')
    progress.rewind(2)
    assert rows(tmp_path) == [1, 2]


def test_a_full_disk_leaves_the_rows_as_they_are(tmp_path: Path, monkeypatch) -> None:
    progress = Progress("sft", tmp_path)
    progress.start("tuning", 5)
    progress.step(1, {"loss": 1.0})

    def full(self: Path, text: str, **options: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        progress.rewind(0)
    assert rows(tmp_path) == [1]
    assert not list(tmp_path.glob(".*"))
