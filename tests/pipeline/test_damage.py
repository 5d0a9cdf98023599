"""Every JSON file of a finished run, damaged: each command says so in a sentence, or does without.

Read in one process: what a command raises past `main` is a failure here.
"""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fretsaw.cli import main

CHILD = "0.8x-params"
FOREIGN = ("tokenizer", "config.json", "generation_config", "special_tokens_map")


def without_a_key(content: bytes) -> bytes:
    value = json.loads(content)
    return json.dumps({key: value[key] for key in sorted(value)[1:]}).encode()


def of_other_types(content: bytes) -> bytes:
    return json.dumps({key: [None] for key in json.loads(content)}).encode()


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


DAMAGE: list[Callable[[bytes], bytes]] = [
    lambda content: b"",
    lambda content: content[: len(content) // 2],
    lambda content: b"[]",
    lambda content: b"null",
    lambda content: content[:10] + b"\xff" + content[10:],
    flipped,
    without_a_key,
    of_other_types,
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damage")
    with tarfile.open(Path(__file__).parents[1] / "earlier_run.tar.xz") as archive:
        archive.extractall(root, filter="data")
    return root


def said_by(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main(command)
    return code, capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_sentence_or_done_without(
    root: Path, tmp_path: Path, damage: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    run = root / "run"
    names = ["run.json", "corpus/manifest.json", f"{CHILD}/rl/manifest.json"]
    names += [f"{CHILD}/rl/status.json", "score/scores.json", "cost/costs.json"]
    search = ["search", "--scores", str(run / "score"), "--costs", str(run / "cost")]
    search += ["--target", "0.8x params", "--engine", "transformers", "--pareto-points", "2"]
    commands = {
        "status": ["status", str(run)],
        "lineage": ["lineage", str(run / CHILD / "rl")],
        "search": [*search, "--out", str(tmp_path / "out")],
    }
    for name in names:
        path = run / name
        before = path.read_bytes()
        path.write_bytes(damage(before))
        for verb, command in commands.items():
            if verb == "search" and name not in ("score/scores.json", "cost/costs.json"):
                continue
            code, said = said_by(command, capsys)
            assert code in (0, 2), (name, verb)
            if code == 2:
                assert len(said) == 1 or verb == "search", (name, verb, said)
                assert str(path) in said[-1], (name, verb, said)
            assert verb != "search" or code == 2, name
        path.write_bytes(before)


def test_trained_weights_and_orders_that_changed_are_told(root: Path, tmp_path: Path) -> None:
    from fretsaw.puzzle.bld.layer_files import read_trained
    from fretsaw.puzzle.library.ranking import read_orders

    run = root / "run"
    for path, read in (
        (run / "bld/layer-001.safetensors", lambda: read_trained(run / "bld", 1)),
        (next(run.glob("rank*/ranking.safetensors")), lambda: read_orders(run / "rank", 3)),
    ):
        before = path.read_bytes()
        for damage in (flipped, lambda content: content[:50], lambda content: b""):
            path.write_bytes(damage(before))
            with pytest.raises(ValueError, match=f"{path}: changed since it was made"):
                read()
        path.write_bytes(before)


def test_one_stage_that_cannot_be_read_leaves_the_others_their_lines(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = root / "run"
    partial, manifest = run / ".rank.partial", run / "corpus/manifest.json"
    before = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(before), "schema": 99}))
    partial.mkdir()
    (partial / "error.txt").write_bytes(b"ValueError: caf\xe9")
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    manifest.write_text(before)
    (partial / "error.txt").unlink()
    partial.rmdir()
    assert "schema 99" in said
    assert "ValueError: caf\ufffd" in said
    assert said.count("done ") > 5
