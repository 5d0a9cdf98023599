"""Tasks by the names that people write: with options, with a file, several at once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fretsaw.engine.sampling import Sampling
from fretsaw.tasks.task import TASKS, Task, asked_tasks, load_problems, split_files


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a task that reads a file, as those of published sets do."""
    row = Task(
        summary="of a test",
        function="fretsaw.tasks.problem:read_problems",
        source="https://example.org/set",
        options=("by",),
        sampling={"on": Sampling(max_tokens=8, temperature=0.6), "off": Sampling(max_tokens=4)},
        licence="MIT",
    )
    monkeypatch.setitem(TASKS, "set", row)


def write(path: Path, answers: list[str]) -> Path:
    rows = (json.dumps({"prompt": f"{answer}?", "answer": answer}) for answer in answers)
    path.write_text("\n".join(rows))
    return path


@pytest.mark.parametrize(
    ("text", "names", "files"),
    [
        ("word_problems + mine.jsonl", "word_problems", ["mine.jsonl"]),
        ("word_problems", "word_problems", []),
        ("set:file=a/b, c=1.jsonl", "set", ["a/b, c=1.jsonl"]),
        ("b.json + set:by=likelihood,file=x.csv", "set:by=likelihood", ["x.csv", "b.json"]),
        ("a.jsonl + set:file=b.jsonl + c.json", "set", ["b.jsonl", "a.jsonl", "c.json"]),
    ],
)  # fmt: skip
def test_files_are_taken_out_in_the_order_of_their_tasks(text, names, files) -> None:
    assert split_files(text) == (names, [Path(file) for file in files])


@pytest.mark.usefixtures("published")
def test_published_sets_read_their_files_and_what_is_left_is_the_users_own(tmp_path: Path) -> None:
    own, theirs = write(tmp_path / "own.jsonl", ["1"]), write(tmp_path / "theirs.jsonl", ["2", "3"])
    files = {"problems": theirs, "problems1": own}
    asked = asked_tasks("word_problems + set:by=likelihood", files, 5, limit=1, seed=0)
    assert [task.name for task in asked] == ["word_problems", "set:by=likelihood", "own.jsonl"]
    assert [len(task.problems) for task in asked] == [5, 1, 1]
    assert [task.problems[0].answer for task in asked[1:]] == ["2", "1"]
    assert [task.by for task in asked] == ["", "likelihood", ""]
    assert asked[1].sampling["on"].temperature == 0.6


@pytest.mark.usefixtures("published")
def test_bad_names_are_told(tmp_path: Path) -> None:
    empty, own = tmp_path / "empty.jsonl", write(tmp_path / "own.jsonl", ["1"])
    empty.write_text("")
    for text, files, said in (
        ("set", [], r"task 'set': reads a file; get it from https://example.org/set \(MIT\)"),
        ("set", [tmp_path / "none.jsonl"], "none.jsonl: no such file"),
        ("set", [empty], "empty.jsonl: "),
        ("set:by=chance", [own], "by is 'chance'; write one of likelihood, byte_likelihood"),
        ("set:split=test", [own], "no option 'split'; it has by"),
        ("word_problems + word_problems", [], "named twice"),
        ("", [own, own], "'own.jsonl': named twice"),
    ):
        inputs = {f"problems{i}": file for i, file in enumerate(files)}
        with pytest.raises(ValueError, match=said):
            asked_tasks(text, inputs, 2, seed=0)


@pytest.mark.usefixtures("published")
def test_choices_are_taken_by_likelihood_in_eval_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="by is for `fretsaw eval`"):
        load_problems("set:by=likelihood", 1, seed=0, file=write(tmp_path / "a.jsonl", ["1"]))


def test_what_every_task_says_can_be_drawn() -> None:
    for row in TASKS.values():
        for sampling in row.sampling.values():
            replace(sampling, seed=1).check()
        assert row.licence
        assert row.load()
