"""What is done says so before anything is imported that computes, whichever command it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fretsaw.checkpoint import folder
from fretsaw.cli import main
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.pipeline.kinds import CHECKPOINTS, STAGES, made_inputs
from fretsaw.stage import artifact
from fretsaw.stage.artifact import StageRequest

COMMANDS = """
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
from fretsaw.cli import main
for command in json.loads(sys.argv[1]):
    print(command[0], main(command), flush=True)
"""


def without_torch(commands: list[list[str]]) -> subprocess.CompletedProcess[str]:
    """Run commands one after another in a process that has no torch."""
    process = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    return subprocess.run(process, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def given(stories_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each input that a stage can't do without, as far as it is checked."""
    root = tmp_path_factory.mktemp("given")
    config = ModelConfig.uniform(
        num_hidden_layers=2,
        num_key_value_heads=2,
        intermediate_size=16,
        vocab_size=512,
        hidden_size=16,
        num_attention_heads=2,
        head_dim=8,
        max_position_embeddings=8192,
    )
    for name in CHECKPOINTS:
        folder.save(Decoder(config), root / name, like=stories_folder)
    for name, (file, _) in made_inputs().items():
        (root / name).mkdir()
        (root / name / file).touch()
    return root


def finished(name: str, given: Path, out: Path) -> list[str]:
    """Make a stage's result, as its manifest has it; return the command that would make it."""
    kind = STAGES[name]
    needed = [one for one in kind.inputs if one not in kind.optional]
    paths = {one: given / one for one in needed}
    for path in paths.values():
        path.mkdir(exist_ok=True)
    request = StageRequest.of(name, kind.settings(), paths, seed=0)
    (artifact.open_partial(out, request) / "result.json").write_text("{}")
    artifact.complete(out, request, {}, seconds=1.0, extra={})
    options = [
        word
        for one, path in paths.items()
        for word in ([str(path)] if one == kind.positional else [f"--{one}", str(path)])
    ]
    return [name, *options, "--out", str(out)]


@pytest.mark.parametrize("left", [[], ["resume"], [".a.json.1.tmp"]], ids=str)
def test_every_stage_that_is_done_says_so_without_torch(
    given: Path, tmp_path: Path, left: list[str]
) -> None:
    """Also where a kill left something beside the result, which is cleared."""
    commands = [finished(name, given, tmp_path / name) for name in STAGES]
    for name in STAGES:
        for folder_left in left:
            (tmp_path / name / folder_left).mkdir()
    result = without_torch(commands)
    assert result.stdout.split() == [word for name in STAGES for word in (name, "0")], result.stderr
    told = [f"{name}: done already in {tmp_path / name}" for name in STAGES]
    assert [line for line in result.stderr.splitlines() if "done already" in line] == told
    for name in STAGES:
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [
            "manifest.json",
            "result.json",
        ]


def test_every_stage_whose_name_is_yet_to_be_given_is_done_without_torch(
    given: Path, tmp_path: Path
) -> None:
    commands = [finished(name, given, tmp_path / name) for name in STAGES]
    for name in STAGES:
        (tmp_path / name).rename(artifact.partial_folder(tmp_path / name))
    result = without_torch(commands)
    assert result.stdout.split() == [word for name in STAGES for word in (name, "0")], result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(STAGES)


def test_other_settings_are_refused_without_torch(given: Path, tmp_path: Path) -> None:
    commands = [[*finished(name, given, tmp_path / name), "--seed", "1"] for name in STAGES]
    result = without_torch(commands)
    assert result.stdout.split() == [word for name in STAGES for word in (name, "2")], result.stderr
    assert result.stderr.count("seed 0 -> 1") == len(STAGES)


def test_answers_that_are_all_there_need_no_model(stories_folder: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("Once\nThere was\n")
    asked = ["--prompts", str(prompts), "--out", str(out), "--max-tokens", "2"]
    command = ["generate", str(stories_folder), *asked, "--device", "cpu"]
    assert main(command) == 0
    answers = out.read_text()
    result = without_torch([command, [*command, "--temperature", "0.5"]])
    assert result.stdout.split() == ["generate", "0", "generate", "2"], result.stderr
    assert f"generate: done already in {out}" in result.stderr
    assert "was begun with other temperature" in result.stderr
    assert out.read_text() == answers
    out.write_text(answers.splitlines(keepends=True)[0])
    result = without_torch([command])
    assert "torch is blocked" in result.stderr
    assert main(command) == 0
    assert out.read_text() == answers


def test_what_stands_in_an_exports_place_is_told_without_torch(
    stories_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").touch()
    commands = [
        ["export", str(stories_folder), "--out", str(out)],
        ["import", str(tmp_path / "a.gguf"), "--out", str(out)],
    ]
    result = without_torch(commands)
    assert result.stdout.split() == ["export", "2", "import", "2"], result.stderr
    assert result.stderr.count(f"{out}: already there; choose another --out") == 2
