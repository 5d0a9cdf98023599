"""A run made by the revision before the rooms were moved opens as before.

`earlier_run.tar.xz` is what that revision's `fretsaw run` left of the recipe below, from corpus to
report; the recipe is the same but for the modules it imports from.
"""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fretsaw.checkpoint import folder
from fretsaw.cli import main
from fretsaw.pipeline.status import render_status
from fretsaw.puzzle.bld.layer_files import read_trained
from fretsaw.rollout.rows import read_rows
from fretsaw.stage.lineage import render_lineage

RECIPE = """
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import DistillSettings, PretrainSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.pipeline.compression import compression, reasoning
from fretsaw.pipeline.recipe import Stage
from fretsaw.puzzle.settings import (
    AssembleSettings, BldSettings, CostSettings, FuseSettings, RankSettings, ScoreSettings,
    SearchSettings, SpaceSettings,
)
from fretsaw.rl.settings import RlSettings
from fretsaw.sft.settings import SftSettings
from fretsaw.training.settings import UpdateSettings

SCENARIO = "batch=4,in=8,out=8,dtype=fp32,device=cpu"
SPACE = SpaceSettings(ffn_percents=(50,))
TRAIN = TrainSettings(tokens=4_096, batch_tokens=512, micro_batch_tokens=512, seq_len=64,
                      heldout_tokens=512, update=UpdateSettings(optimizer="muon"))
EVAL = EvalSettings(tokens=512, seq_len=64, task="word_problems", num_problems=4,
                    temperature=0.0, max_new_tokens=16)


def recipe():
    target = "0.8x params"
    stages = compression(
        parent="pretrain", target=target, scenario=SCENARIO,
        rank=RankSettings(tokens=1024, seq_len=64),
        bld=BldSettings(space=SPACE, tokens=1024, seq_len=64, batch_tokens=512, repair_tokens=512,
                        heldout_tokens=512),
        score=ScoreSettings(repair_tokens=1024, tokens=512, seq_len=64, space=SPACE),
        cost=CostSettings(scenario=SCENARIO, rounds=1, layers=1, probes=1, space=SPACE),
        search=SearchSettings(pareto_points=2, engine="transformers"),
        assemble=AssembleSettings(tokens=1024, seq_len=64),
        fuse=FuseSettings(seq_len=64, tokens=512, repair_tokens=512, dependency_tokens=128,
                          rounds=1, scenario=SCENARIO),
        distill=DistillSettings(train=TRAIN),
        evaluate=EVAL,
        in_8_bits=("fp8",),
    )
    return [
        Stage("corpus", CorpusSettings(source="world", max_tokens=20_000, heldout_tokens=2048,
                                       vocab_size=280, seq_len=64)),
        Stage("pretrain", PretrainSettings(num_hidden_layers=3, hidden_size=16,
              num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
              max_position_embeddings=256, train=TRAIN), {"corpus": "corpus"}),
        *reasoning(
            stages, target=target, evaluate=EVAL,
            tune=SftSettings(source="world", num_rows=60, epochs=1, batch_tokens=1024,
                             micro_batch_tokens=1024, seq_len=256),
            reinforce=RlSettings(task="word_problems:steps=1", num_problems=8, heldout_problems=2,
                                 num_rollouts=1, prompts_per_rollout=4, group_size=2,
                                 updates_per_rollout=2, max_tokens=8, needs_signal=False),
        ),
    ]
"""
CHILD = "0.8x-params"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("earlier_run.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "old.py").write_text(RECIPE)
    return tmp_path


def go_on(where: Path, *more: str) -> list[str]:
    """Run the recipe over the finished run; return what was said, a line each."""
    command = [sys.executable, "-m", "fretsaw", "run", "old.py", "--out", "run", *more]
    result = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr.splitlines()


def test_nothing_of_it_is_stale(earlier: Path) -> None:
    names = json.loads((earlier / "run/run.json").read_text())["stages"]
    assert go_on(earlier)[: len(names)] == [f"{name}: done" for name in names]


def test_its_report_is_made_again_from_what_it_left(earlier: Path) -> None:
    before = (earlier / "run" / CHILD / "report/report.html").read_text()
    said = go_on(earlier, "--force-from", f"{CHILD}/report")
    assert f"{CHILD}/rl-eval: done" in said
    after = (earlier / "run" / CHILD / "report/report.html").read_text()
    for told in (r"<text[^>]*>([^<]*)</text>", r"<figcaption>(.*?)</figcaption>"):
        found = re.findall(told, after, re.DOTALL)
        assert found == re.findall(told, before, re.DOTALL)
        assert found


def test_it_is_shown_and_measured_by(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = earlier / "run"
    shown = render_status(run).splitlines()
    assert len([line for line in shown if " done " in line]) == 18
    lineage = render_lineage(run / CHILD / "rl")
    assert "  rl  " in lineage.splitlines()[0]
    assert "model: /runs/earlier/run/0.8x-params/sft" in lineage
    assert main(["plan", str(earlier / "old.py"), "--measured", str(run)]) == 0
    assert "the run in" in capsys.readouterr().out


def test_its_artifacts_are_read(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = earlier / "run"
    for name in ("pretrain", f"{CHILD}/assemble", f"{CHILD}/distill", f"{CHILD}/rl"):
        assert folder.load(run / name).config == folder.read_config(run / name)
    assert read_trained(run / "bld", 0)
    rows = read_rows(run / CHILD / "rl/rollouts/00000.parquet")
    assert len(rows) == 8
    assert {row.mode for row in rows} == {"on", "off"}
    assert main(["generate", str(run / CHILD / "rl"), "Once", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out
    search = ["search", "--scores", str(run / "score"), "--costs", str(run / "cost")]
    target = ["--target", "0.8x params", "--engine", "transformers", "--pareto-points", "2"]
    assert main([*search, *target, "--out", str(earlier / "again")]) == 0
    found, before = (
        json.loads((path / "solutions.json").read_text())
        for path in (earlier / "again", run / CHILD / "search")
    )
    assert found == before
