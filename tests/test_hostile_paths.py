"""Paths that can't be written or read: one sentence, exit code 2, and nothing is lost."""

import json
from pathlib import Path

import pytest

from fretsaw.cli import main


@pytest.fixture(scope="module")
def inputs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what commands read: text, rows, a table, a recipe, and `tiny`'s folders."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "text.txt").write_text("Tom has 3 pens. " * 2000)
    costs = {"score": 0.0, "runtime_ms": 1.0}
    layer = {"attention": {"gqa4": costs}, "ffn": {"ffn64": costs}}
    (folder / "table.json").write_text(json.dumps({"fixed": {"runtime_ms": 0}, "layers": [layer]}))
    (folder / "recipe.py").write_text(
        "from fretsaw.corpus.settings import CorpusSettings\n"
        "from fretsaw.pipeline.recipe import Stage\n"
        "def recipe():\n"
        "    return [Stage('corpus', CorpusSettings(source='world', max_tokens=20_000))]\n"
    )
    for name in ("corpus", "parent", "ranking"):
        (folder / name).symlink_to(tiny / name)
    return folder


# IN is the folder of inputs.
WRITING = {
    "corpus": "corpus --source world --max-tokens 20000 --vocab-size 300 --seq-len 64",
    "pretrain": "pretrain --corpus IN/corpus --seq-len 64 DEVICE",
    "rank": "rank --parent IN/parent --corpus IN/corpus --seq-len 64 DEVICE",
    "distill": "distill --child IN/parent --parent IN/parent --corpus IN/corpus DEVICE",
    "sft": "sft --model IN/parent --source world --seq-len 256 DEVICE",
    "eval": "eval --model IN/parent --corpus IN/corpus DEVICE",
    "search": "search --scores IN/corpus --costs IN/corpus --target 1.5x",
    "search-table": "search-table --library IN/table.json --limit runtime_ms=20",
    "export": "export IN/parent",
    "run": "run IN/recipe.py DEVICE",
    "compress": "compress IN/parent --data IN/text.txt --target 0.8x_params DEVICE",
    "report": "report --parent IN/parent --ranking IN/ranking --scores IN/corpus --costs IN/corpus "
    "--search IN/corpus --assembled IN/parent --child IN/parent --eval IN/corpus --bench IN/corpus",
}


def places(folder: Path) -> dict[str, Path | str]:
    """Make places where nothing can be written, by what is wrong with them."""
    (folder / "file").write_text("mine")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("years of work")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "to-file").symlink_to("file")
    (folder / ".held.holder").mkdir()
    return {
        "empty": "",
        "here": ".",
        "above": "..",
        "the root": "/",
        "a folder's parent": folder / "full" / "..",
        "a file": folder / "file",
        "below a file": folder / "file" / "out",
        "deep below a file": folder / "file" / "a" / "b" / "out",
        "below a link to a file": folder / "to-file" / "out",
        "a folder of somebody's": folder / "full",
        "a dangling link": folder / "dangling",
        "below a dangling link": folder / "dangling" / "out",
        "a circle": folder / "loop",
        "below a circle": folder / "loop" / "out",
        "a long name": folder / ("n" * 300),
        "a name too long with a suffix": folder / ("n" * 250),
        "a long path": folder / "/".join(["n" * 100] * 50),
        "processes": "/proc/out",
        "a process": "/proc/self/out",
        "the kernel": "/sys/out",
        "a device": "/dev/null",
        "below a device": "/dev/full/out",
        "a folder for a holder": folder / "held",
    }


def snapshot(folder: Path) -> list[tuple[str, bytes]]:
    return sorted(
        (str(path), path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
        if ".out.partial" not in path.parts  # where error.txt says what was wrong
    )


def refused(capfd: pytest.CaptureFixture, arguments: list[str]) -> str:
    """Check that a command ends with code 2 and one sentence, which is returned."""
    try:
        code = main(arguments)
    except SystemExit as ended:  # of the parser
        code = ended.code
    errors = capfd.readouterr().err.strip()
    assert code == 2, (arguments, errors)
    assert "Traceback" not in errors
    return errors.splitlines()[-1] if errors else ""


@pytest.mark.parametrize("command", WRITING)
def test_a_place_where_nothing_can_be_written(
    capfd, tmp_path: Path, inputs: Path, command: str, monkeypatch
) -> None:
    (tmp_path / "at").mkdir()
    monkeypatch.chdir(tmp_path / "at")  # should one write "here", it is here
    text = WRITING[command].replace("IN", str(inputs))
    words = text.replace("DEVICE", "--device cpu --dtype fp32").split()
    words = [word.replace("_params", " params") for word in words]
    bad = places(tmp_path)
    before = snapshot(tmp_path)
    for what, place in bad.items():
        message = refused(capfd, [*words, f"--out={place}"])
        assert message.startswith("fretsaw: "), (what, message)
        assert len(message) < 6000, what
        assert snapshot(tmp_path) == before, what


READING = {
    "inspect": "inspect PATH",
    "status": "status PATH",
    "plan": "plan PATH --target 1.5x",
    "export": "export PATH --out OUT",
    "rank": "rank --parent PATH --corpus IN/corpus --out OUT",
    "rank's corpus": "rank --parent IN/parent --corpus PATH --out OUT",
    "corpus": "corpus --parent IN/parent --data PATH --out OUT",
    "sft": "sft --model PATH --source world --out OUT",
    "sft's rows": "sft --model IN/parent --data PATH --out OUT",
    "distill": "distill --child PATH --parent IN/parent --corpus IN/corpus --out OUT",
    "eval": "eval --model PATH --out OUT",
    "eval's problems": "eval --model IN/parent --task PATH.jsonl --out OUT",
    "search-table": "search-table --library PATH --limit runtime_ms=20 --out OUT",
    "run": "run PATH.py --out OUT",
    "compress": "compress PATH --data IN/text.txt --target 1.5x --out OUT",
    "compress's data": "compress IN/parent --data PATH --target 1.5x --out OUT",
    "generate": "generate IN/parent --prompts PATH --out OUT",
}


@pytest.mark.parametrize("command", READING)
def test_a_path_that_cannot_be_read(capfd, tmp_path: Path, inputs: Path, command: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"\x00\xff mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    bad = ["folder", "file", "file/below", "loop", "loop/below", "dangling", "n" * 300, "nowhere"]
    before = snapshot(tmp_path)
    for name in bad:
        words = READING[command].replace("IN", str(inputs)).split()
        arguments = [
            word.replace("PATH", str(tmp_path / name)).replace("OUT", str(tmp_path / "out"))
            for word in words
        ]
        message = refused(capfd, arguments)
        assert message, name
        assert snapshot(tmp_path) == before, name
