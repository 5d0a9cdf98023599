"""CONTRIBUTING.md leads newcomers to files that are there."""

import re
from pathlib import Path

from test_layout import FLOORS

ROOT = Path(__file__).parents[1]
PATH = re.compile(r"`(fretsaw/[^`]+)`")


def section(title: str) -> str:
    """Return what stands under a heading, up to the next one."""
    _, _, rest = (ROOT / "CONTRIBUTING.md").read_text().partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0]


def absent(paths: list[str]) -> list[str]:
    return [path for path in paths if not (ROOT / path).is_file()]


def test_the_six_files_to_read_first_are_there() -> None:
    items = re.findall(r"^\d\. .*$", section("Read these six files first"), re.MULTILINE)
    files = [path for item in items for path in PATH.findall(item)]
    assert len(items) == len(set(files)) == 6
    assert absent(files) == []


def test_every_question_of_where_has_files_that_are_there() -> None:
    _, _, *rows = re.findall(r"^\|.*$", section("What is where"), re.MULTILINE)
    answers = [PATH.findall(row.split("|")[2]) for row in rows]
    assert len(answers) >= 10
    assert [row for row, files in zip(rows, answers, strict=True) if not files] == []
    assert absent([path for files in answers for path in files]) == []


def test_the_rooms_are_those_of_the_layout() -> None:
    _, _, *rows = re.findall(r"^\|.*$", section("Rooms and floors"), re.MULTILINE)
    floors: dict[int, set[str]] = {}
    for row in rows:
        _, floor, rooms, _ = row.split("|")
        floors.setdefault(int(floor) - 1, set()).update(re.findall(r"`(\w+)`", rooms))
    known = {i: {room for room in rooms if "__" not in room} for i, rooms in enumerate(FLOORS)}
    assert floors == known
