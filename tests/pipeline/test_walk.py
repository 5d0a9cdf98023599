"""A whole run: in real processes, killed and resumed; asked again; given a second target."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import patient
from support import start_here

from fretsaw.cli import main
from fretsaw.pipeline import launch
from fretsaw.pipeline.status import render_status
from fretsaw.pipeline.walk import RUN_FILE, RunOptions, _recorded
from fretsaw.stage.lineage import render_lineage
from fretsaw.stage.own_file import Damaged
from fretsaw.stage.place import Refused

RECIPE = """
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import DistillSettings, PretrainSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.puzzle.settings import (
    AssembleSettings, CostSettings, RankSettings, ScoreSettings, SearchSettings, SpaceSettings,
)
from fretsaw.pipeline.compression import compression
from fretsaw.pipeline.recipe import Stage
from fretsaw.training.settings import UpdateSettings

SCENARIO = "batch=8,in=16,out=16,dtype=fp32,device=cpu"
SPACE = SpaceSettings(ffn_percents=(50, 25), linear=False)
TRAIN = TrainSettings(tokens=20_480, batch_tokens=512, micro_batch_tokens=512, seq_len=64,
                      heldout_tokens=1024, save_every_s=0.2,
                      update=UpdateSettings(optimizer="muon"))

def recipe(target="0.8x params", candidates=1):
    return [
        Stage("corpus", CorpusSettings(source="world", max_tokens=40_000, heldout_tokens=4096,
                                       vocab_size=300, seq_len=64)),
        Stage("pretrain", PretrainSettings(num_hidden_layers=4, hidden_size=32,
              num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, train=TRAIN),
              {"corpus": "corpus"}),
        *compression(
            parent="pretrain", target=target, scenario=SCENARIO,
            rank=RankSettings(tokens=2048, seq_len=64),
            score=ScoreSettings(repair_tokens=1024, tokens=512, seq_len=64, space=SPACE),
            cost=CostSettings(scenario=SCENARIO, rounds=1, layers=1, probes=1, space=SPACE),
            search=SearchSettings(pareto_points=2),
            assemble=AssembleSettings(tokens=2048, seq_len=64),
            distill=DistillSettings(train=TRAIN),
            evaluate=EvalSettings(tokens=1024, seq_len=64, task="word_problems", num_problems=4,
                                  max_new_tokens=32),
            candidates=candidates,
        ),
    ]
"""
CHILD = "0.8x-params/distill"


def words(recipe: Path, out: Path, *more: str) -> list[str]:
    return ["run", str(recipe), "--out", str(out), "--dtype", "fp32", "--device", "cpu", *more]


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "fretsaw", *words(recipe, out, *more)]


def run_here(recipe: Path, out: Path, *more: str) -> None:
    """Run the stages one after another in this process, which spares every stage its imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "start", start_here)
        assert main(words(recipe, out, *more)) == 0


def run(recipe: Path, out: Path, *more: str) -> subprocess.CompletedProcess:
    result = subprocess.run(
        command(recipe, out, *more), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "a"
    run_here(recipe, out)
    return out


def weights_hash(out: Path) -> str:
    return hashlib.sha256((out / CHILD / "model.safetensors").read_bytes()).hexdigest()


def test_the_run_ends_in_a_report_of_a_child_that_meets_its_target(finished: Path) -> None:
    assert (finished / "0.8x-params/report/report.html").stat().st_size < 2_000_000
    forecast = json.loads((finished / "0.8x-params/search/forecast.json").read_text())
    assert forecast["child"]["params"] <= 0.8 * forecast["parent"]["params"]
    assert "done" in render_status(finished)
    lineage = render_lineage(finished / CHILD)
    assert "pretrain" in lineage
    assert "changed since" not in lineage


def test_nothing_is_done_twice(recipe: Path, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("manifest.json")}
    again = run(recipe, finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("manifest.json")} == before
    assert again.stderr.count(": done\n") == 13


def test_what_is_done_stays_done_without_its_run_file(recipe: Path, finished: Path) -> None:
    (finished / RUN_FILE).unlink()
    asked = subprocess.run(
        [*command(recipe, finished), "--dry-run"], capture_output=True, text=True, check=True
    )
    assert asked.stdout.count('"skip: done"') == 13
    assert not (finished / RUN_FILE).exists()
    assert run(recipe, finished).stderr.count(": done\n") == 13
    assert (finished / RUN_FILE).is_file()


def test_a_folder_of_others_is_no_run(tmp_path: Path) -> None:
    options = RunOptions("mine", tmp_path)
    for name in (".git", "photos/2020/a.jpg", "rank/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        with pytest.raises(Refused, match="not a fretsaw run"):
            _recorded(tmp_path, options)
        (tmp_path / name).unlink()
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(Damaged, match="damaged"):
        _recorded(tmp_path, options)


def test_a_second_target_reruns_nothing_before_the_search(recipe: Path, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("manifest.json")}
    options = ("--arg", "target=60% memory", "--only", "60pct-memory/search")
    result = run(recipe, finished, *options)
    after = {p: p.stat().st_mtime_ns for p in finished.rglob("manifest.json")}
    new = after.keys() - before.keys()
    assert [p.parent.name for p in new] == ["search"]
    assert all(after[p] == before[p] for p in before)
    assert "x decode" in result.stderr


def test_candidates_are_healed_briefly_and_the_best_of_them_at_length(
    recipe: Path, finished: Path
) -> None:
    target, at = "0.75x params", finished / "0.75x-params"
    options = ("--arg", f"target={target}", "--arg", "candidates=2")
    run_here(recipe, finished, *options, "--from", "0.75x-params/search")
    chosen = json.loads((at / "select/chosen.json").read_text())
    figures = [one["figure"] for one in chosen["candidates"]]
    winner = at / f"assemble{chosen['candidate']}"
    assert figures[chosen["candidate"]] == min(figures)
    weights = [hashlib.sha256((f / "model.safetensors").read_bytes()).hexdigest()
               for f in (winner, at / "select")]  # fmt: skip
    assert weights[0] == weights[1]
    assert "assemble" in render_lineage(at / "distill")
    assert (at / "report/report.html").is_file()


def test_changed_settings_are_refused_until_forced(recipe: Path, finished: Path) -> None:
    options = ("--set", "rank.tokens=1024")
    refused = subprocess.run(
        command(recipe, finished, *options), capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "tokens 2048 -> 1024" in refused.stderr
    assert "--force-from rank" in refused.stderr


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_in_the_same_weights(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    run(recipe, out, "--only", "corpus")
    shutil.copytree(finished / "cost", out / "cost")  # times differ; the table decides the child
    for seconds in (5.0, 8.0, 13.0):
        process = subprocess.Popen(
            command(recipe, out), start_new_session=True, stderr=subprocess.DEVNULL
        )
        time.sleep(seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(recipe, out)
    assert weights_hash(out) == weights_hash(finished)


@pytest.mark.slow
def test_sigterm_saves_and_exits_75(recipe: Path, finished: Path, tmp_path: Path) -> None:
    settings = ("--tokens", "4096000", "--batch-tokens", "512", "--micro-batch-tokens", "512")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fretsaw", "distill", "--child", str(finished / CHILD)),
            *("--parent", str(finished / "pretrain"), "--corpus", str(finished / "corpus")),
            *("--seq-len", "64", *settings, "--out", str(tmp_path / "long"), "--dtype", "fp32"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    status = tmp_path / ".long.partial" / "status.json"
    deadline = time.monotonic() + patient(60)
    while not status.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=patient(60))
    assert process.returncode == 75, errors
    assert "goes on from here" in errors
    saved = sorted((tmp_path / ".long.partial/resume").glob("step-*"))
    step = json.loads(status.read_text())["step"]
    assert int(saved[-1].name.split("-")[1]) >= step > 0
    assert "stopped" in render_status(tmp_path / "long")
