"""What a user can do wrong: one sentence on stderr, exit code 2, nothing half-written."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fretsaw.cli import main
from fretsaw.engine.engine import Engine
from fretsaw.engine.sequence import Event
from fretsaw.pipeline.compression import compression
from fretsaw.pipeline.kinds import STAGES
from fretsaw.pipeline.recipe import Stage, slug
from fretsaw.pipeline.walk import apply_overrides
from fretsaw.puzzle.settings import RankSettings
from fretsaw.stage.holder import hold

TARGET = ["--target", "1.5x decode"]


def refuse(capsys: pytest.CaptureFixture, arguments: list[str], *parts: str) -> None:
    """Check that a command ends with code 2 and one sentence that holds these parts."""
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("fretsaw: ")
    for part in parts:
        assert part in message, message


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Tom has 3 pens. " * 2000)
    return path


def compress(checkpoint: Path, data: Path | str, out: Path, *more: str) -> list[str]:
    return ["compress", str(checkpoint), "--data", str(data), *TARGET, "--out", str(out), *more]


def test_no_such_command(capsys) -> None:
    refuse(capsys, ["compres"], "no command 'compres'", "did you mean 'compress'")


def test_a_folder_that_is_no_checkpoint(capsys, tmp_path: Path, text: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(capsys, compress(tmp_path / "empty", text, tmp_path / "out"), "no config.json")
    assert not (tmp_path / "out").exists()


def test_an_unknown_architecture(capsys, tmp_path: Path, text: Path) -> None:
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    refuse(capsys, compress(tmp_path / "gpt", text, tmp_path / "out"), "'gpt2'", "Llama family")


def test_an_impossible_target(capsys, tiny: Path, tmp_path: Path, text: Path) -> None:
    wrong = compress(tiny / "parent", text, tmp_path / "out")
    wrong[wrong.index("1.5x decode")] = "0.5x decode"
    refuse(capsys, wrong, "0.5x decode", "above 1x")
    wrong[wrong.index("0.5x decode")] = "fast please"
    refuse(capsys, wrong, "fast please", "1.5x decode")


def test_data_that_is_not_there(capsys, tiny: Path, tmp_path: Path) -> None:
    wrong = compress(tiny / "parent", tmp_path / "no.txt", tmp_path / "out")
    refuse(capsys, wrong, "no.txt", "no such file")


def test_an_output_folder_of_somebody_else(capsys, tiny, tmp_path: Path, text: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    refuse(capsys, compress(tiny / "parent", text, tmp_path / "out"), "left as it is")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(
        json.dumps({"name": "tiny", "seed": 0, "device": "cpu", "dtype": "fp32", "stages": []})
    )
    refuse(capsys, compress(tiny / "parent", text, tmp_path / "run"), "belongs to", "'tiny'")


def test_a_scenario_beyond_the_context(capsys, tiny: Path, tmp_path: Path, text: Path) -> None:
    scenario = "batch=4,in=9000,out=64,dtype=fp32,device=cpu"
    wrong = compress(tiny / "parent", text, tmp_path / "out", "--scenario", scenario)
    refuse(capsys, wrong, "9064 tokens a row", "lower in or out")


def corpus(parent: Path, data: Path, out: Path) -> list[str]:
    return ["corpus", "--parent", str(parent), "--data", str(data), "--out", str(out)]


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "empty"), (b"   \n", "blank"), (b"abc \xff\xfe abc", "UTF-8"), (b"short text", "token")],
)
def test_text_that_cannot_be_used(
    capsys, tiny: Path, tmp_path: Path, content: bytes, match: str
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    refuse(capsys, corpus(tiny / "parent", tmp_path / "text.txt", tmp_path / "out"), match)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_does_not_fit(capsys, tiny: Path, tmp_path: Path, text: Path) -> None:
    shutil.copytree(tiny / "parent", tmp_path / "parent")
    raw = json.loads((tmp_path / "parent" / "config.json").read_text())
    (tmp_path / "parent" / "config.json").write_text(json.dumps({**raw, "vocab_size": 100}))
    wrong = corpus(tmp_path / "parent", text, tmp_path / "out")
    refuse(capsys, wrong, "tokenizer", "100")


def test_weights_that_are_damaged(capsys, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "parent", tmp_path / "parent")
    weights = tmp_path / "parent" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    arguments = ["rank", "--parent", str(tmp_path / "parent"), "--corpus", str(tiny / "corpus")]
    refuse(capsys, [*arguments, "--out", str(tmp_path / "out")], "model.safetensors")
    assert not (tmp_path / "out").exists()


def test_settings_with_unknown_keys_or_wrong_types() -> None:
    stages = [Stage("rank", RankSettings())]
    assert apply_overrides(stages, ["rank.tokens=512"])[0].settings.tokens == 512
    with pytest.raises(ValueError, match="did you mean 'tokens'"):
        apply_overrides(stages, ["rank.token=64"])
    with pytest.raises(ValueError, match="'many' is str; it takes int"):
        apply_overrides(stages, ["rank.tokens=many"])
    with pytest.raises(ValueError, match="write STAGE"):
        apply_overrides(stages, ["ranking.tokens=64"])


def test_a_dry_run_prints_what_would_run_and_writes_nothing(
    capsys, tiny: Path, tmp_path: Path, text: Path
) -> None:
    assert main(compress(tiny / "parent", text, tmp_path / "out", "--dry-run")) == 0
    stages = json.loads(capsys.readouterr().out)
    assert [s["command"] for s in stages][:4] == ["corpus", "rank", "score", "cost"]
    assert all(s["would"].startswith("run") for s in stages)
    assert stages[-1]["settings"] == {"title": ""}
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}')
    command = compress(tiny / "parent", rows, tmp_path / "out", "--dry-run")
    refuse(capsys, command, "rows.jsonl, line 1", "messages is []")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows.write_text(json.dumps({"messages": turns}))
    refuse(capsys, command, "rows.jsonl, line 1", "a conversation, but there is no chat format")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_one_stage(capsys, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    inputs = ["--parent", str(tiny / "parent"), "--corpus", str(tiny / "corpus")]
    command = ["rank", *inputs, "--out", str(out), "--tokens", "2048", "--seq-len", "64"]
    shown = dataclasses.replace(STAGES["rank"], preview="test_cli:preview_of")
    monkeypatch.setitem(sys.modules, "test_cli", sys.modules[__name__])
    monkeypatch.setitem(STAGES, "rank", shown)
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"output: {out}: would be made" in said
    assert "setting tokens = 2048" in said
    assert "shown besides: 0" in said
    assert not out.exists()
    assert not (tmp_path / ".out.partial").exists()
    assert main([*command, "--dry-run", "--device", "tpu"]) == 2
    assert main(["rank", *inputs[:2], "--corpus", str(tmp_path), "--out", "x", "--dry-run"]) == 2
    capsys.readouterr()
    assert main(command) == 0
    assert main([*command, "--dry-run"]) == 0
    assert "done already" in capsys.readouterr().out
    refuse(capsys, [*command, "--seed", "1", "--dry-run"], "made with other settings")
    before = tmp_path.stat().st_mtime_ns
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command], capture_output=True, text=True, check=True
    )
    assert "done already" in told.stderr
    assert "precision" not in told.stderr
    assert tmp_path.stat().st_mtime_ns == before  # so it can be read where nothing can be written


WITHOUT_TORCH = (
    "import sys; from fretsaw.cli import main; main(); assert 'torch' not in sys.modules"
)


def test_a_dry_run_refuses_what_the_command_does(capsys, tiny: Path, tmp_path: Path) -> None:
    out, problems = tmp_path / "out", tmp_path / "problems.jsonl"
    model = ["--parent", str(tiny / "parent"), "--corpus", str(tiny / "corpus")]
    rank = ["rank", *model, "--tokens", "2048", "--seq-len", "64", "--dry-run", "--out"]
    refuse(capsys, [*rank, str(tmp_path / "x" / "..")], "a name of its own")
    with hold(out):
        refuse(capsys, [*rank, str(out)], "in use by another process")
        refuse(capsys, [*rank, str(out / "rank")], "in use by another process")
    problems.write_text('{"prompt": "1+1", "answer": "2", "grader": "guess"}\n')
    options = ["--task", str(problems), "--out", str(out), "--dry-run"]
    refuse(
        capsys, ["eval", "--model", str(tiny / "parent"), *options], "line 1", "grader is 'guess'"
    )
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "request.json").write_text("{")
    refuse(capsys, [*rank, str(out)], "request.json: damaged")
    asked = {"stage": "rank", "settings": {}, "inputs": {}, "seed": 0}
    (partial / "request.json").write_text(json.dumps(asked))
    assert main([*rank, str(out)]) == 0
    assert "begun anew" in capsys.readouterr().out
    (partial / "state").touch()
    refuse(capsys, [*rank, str(out)], ".out.partial: made with other settings")


def test_a_dry_run_is_a_plain_flag(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["rank", "--help"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "--dry-run" in line)
    assert "{" not in line
    assert "--no-dry-run" not in line


def preview_of(settings: RankSettings, inputs: Mapping[str, Path], seed: int) -> str:
    return f"shown besides: {seed}"


def test_the_targets_folders_share_what_is_before_the_search() -> None:
    def names(target: str) -> set[str]:
        return {s.name for s in compression(parent="p", target=target, scenario="batch=1")}

    of_the_parent = {"rank", "score", "cost", "parent-fp8", "parent-int8"}
    assert names("1.5x decode") & names("2x prefill") == of_the_parent
    assert slug("1.5x decode, 60% memory") == "1.5x-decode-60pct-memory"


@pytest.mark.parametrize(
    ("device", "message"), [("tpu", "device 'tpu' is none"), ("cuda:99", "torch finds")]
)
def test_a_device_that_is_not_there(
    capsys, tiny: Path, tmp_path: Path, device: str, message: str
) -> None:
    parent, out = str(tiny / "parent"), tmp_path / "out"
    assert main(["generate", parent, "hi", "--device", device]) == 2
    assert message in capsys.readouterr().err
    inputs = ["--parent", parent, "--corpus", str(tiny / "corpus")]
    assert main(["rank", *inputs, "--out", str(out), "--device", device]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_model_that_can_answer_nothing_is_one_sentence_and_exit_code_1(
    capsys, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(self: Engine, requests, **more):
        for number in range(len(requests)):
            yield Event(number, None, 0.0, "error", error="not finite")

    monkeypatch.setattr(Engine, "generate", generate)
    (tmp_path / "prompts.txt").write_text("Tom has\nBen goes\n")
    files = ["--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out.jsonl")]
    for given, said in (
        (["hi"], "fretsaw: request 0: not finite\n"),
        (files, "fretsaw: generate: 2 of 2 answers failed, the first of prompt 0: not finite\n"),
    ):
        assert main(["generate", str(tiny / "parent"), *given, "--device", "cpu"]) == 1
        error = capsys.readouterr().err
        assert error.endswith(said)
        assert "Traceback" not in error
