"""Launchers: which words start a stage, and which stages a run gives them to."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fretsaw.cli import main
from fretsaw.commands.jobs import _torchrun
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import PretrainSettings
from fretsaw.pipeline import launch
from fretsaw.pipeline.recipe import Stage
from fretsaw.pipeline.walk import RunOptions, _launcher

TORCHRUN = "torchrun --nproc-per-node 4"


def test_python_and_torchrun_are_those_of_this_environment() -> None:
    assert launch._words("python -X dev") == [sys.executable, "-X", "dev"]
    own = [sys.executable, "-m", "fretsaw.distributed.torchrun", "--nproc-per-node", "4"]
    assert launch._words(TORCHRUN) == own
    assert launch._words("env torchrun") == ["env", "torchrun"]


@pytest.mark.parametrize("launcher", ["", "no-such-program --now"])
def test_a_launcher_that_is_not_there_is_refused(launcher: str) -> None:
    with pytest.raises(ValueError, match="no program"):
        launch._words(launcher)


def test_the_option_goes_to_stages_that_train_and_before_their_own() -> None:
    trains = Stage("pretrain", PretrainSettings(), launcher="torchrun --nproc-per-node 2")
    other = Stage("corpus", CorpusSettings())
    plain = RunOptions("r", Path("out"))
    asked = RunOptions("r", Path("out"), launcher=TORCHRUN)
    assert _launcher(trains, plain) == trains.launcher
    assert _launcher(trains, asked) == TORCHRUN
    assert _launcher(other, plain) == _launcher(other, asked) == "python"


def test_nproc_is_short_for_torchrun() -> None:
    assert _torchrun(1) == ""
    assert _torchrun(3) == "torchrun --standalone --nproc-per-node 3"
    with pytest.raises(ValueError, match="at least one"):
        _torchrun(0)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        *(("within", None, "no key 'within'"), ("stage", "rnak", "'rnak' is no stage")),
        *(("stage", 3, "'stage' is a whole number"), ("inputs", {"search": 3}, "input 'search'")),
        ("workers", {"worker": 2}, "did you mean 'workers'"),
    ],
)
def test_a_request_that_is_none_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, said: str
) -> None:
    asked = {
        **{"stage": "search", "settings": {}, "inputs": {}, "seed": 0, "force": False},
        **{"out": str(tmp_path / "out"), "device": "cpu", "dtype": "fp32"},
        **{"workers": {}, "within": ""},
    }
    asked = {**asked, key: value} if value is not None else asked
    if value is None:
        del asked[key]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    assert main(["stage", str(tmp_path / "asked.json")]) == 2
    assert said in capsys.readouterr().err


def test_a_request_names_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage"]) == 2
    assert "give the request file" in capsys.readouterr().err
