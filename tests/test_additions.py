"""What is added by one row and one object, and then is everywhere without another edit.

A stage, a grader, a task, an export target and a kind of attention: each is put into its table here
and looked for on the command line, in plans, recipes, reports and the index of the documentation.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import ask, naive
from report.conftest import SCENARIO, finish, finished, write  # noqa: F401
from support import stage_run
from test_docs import undocumented
from torch import Tensor, nn

from fretsaw.chat.message import Message
from fretsaw.checkpoint import decilm, folder
from fretsaw.checkpoint.export_targets import EXPORT_TARGETS, ExportTarget
from fretsaw.cli import main
from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.grade.grader import GRADERS, Grade, Grader
from fretsaw.model.attention import GroupedQueryAttention, LinearMixer
from fretsaw.model.config import BlockConfig, ModelConfig, blocks_from_names
from fretsaw.model.decoder import Block
from fretsaw.model.kinds import KINDS, SubblockKind
from fretsaw.model.linear import linear
from fretsaw.model.size import forward_flops, num_params
from fretsaw.pipeline.kinds import STAGES, StageKind
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.forecast import foresee
from fretsaw.plan.render import render_forecast
from fretsaw.plan.shapes import outside
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, Work
from fretsaw.puzzle.library.repair import output_matrix
from fretsaw.puzzle.library.slices import build_block
from fretsaw.puzzle.search.rules import rules_of
from fretsaw.puzzle.settings import SpaceSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.report.html import report
from fretsaw.report.settings import ReportSettings
from fretsaw.stage.execute import StageRun
from fretsaw.tasks.problem import Problem
from fretsaw.tasks.task import TASKS, Task, load_problems

# --- a stage --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EchoSettings:
    """Saying a model again."""

    times: int = 1
    """How often."""


def echo(settings: Any, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    folder.write(folder.load(inputs["model"]), run.folder, like=inputs["model"])
    return {"times": settings.times}


ECHO = StagePlan(
    work=lambda settings, at, on: Work(
        seconds=3600.0 * settings.times, tokens=num_params(at["model"])
    )
)
ECHO_ROW = StageKind(
    "say a model again",
    "test_additions:echo",
    EchoSettings,
    {"model": "what is said again"},
    plan="test_additions:ECHO",
    page="run.md",
    makes="checkpoint",
    like="model",
)


@pytest.fixture
def added_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "echo", ECHO_ROW)


def test_a_stage_is_a_command(
    added_stage: None, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--help"]) == 0
    assert "echo          say a model again" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["echo", "--help"])
    told = capsys.readouterr().out
    assert "--times" in told
    assert "what is said again" in told
    command = [
        "echo",
        "--model",
        str(tiny / "parent"),
        "--times",
        "3",
        "--out",
        str(tmp_path / "e"),
    ]
    assert main(command) == 0
    assert json.loads((tmp_path / "e/manifest.json").read_text())["metrics"] == {"times": 3}
    assert main(["echo", "--model", str(tiny / "corpus"), "--out", str(tmp_path / "f")]) == 2


def test_a_stage_is_of_recipes_and_plans(added_stage: None, tiny: Path) -> None:
    stage = Stage("said", EchoSettings(times=2), {"model": str(tiny / "parent")})
    again = Stage("again", EchoSettings(), {"model": "said"})
    assert stage.kind == "echo"
    forecast = foresee([stage, again], Hardware.of("cpu"), outside)
    assert [one.seconds for one in forecast.stages] == [7200, 3600]
    assert forecast.stages[1].work.tokens == num_params(outside(str(tiny / "parent")))
    shown = render_forecast(forecast, title="test", price=None)
    assert [line for line in shown.splitlines() if line.startswith("said ")]
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        foresee([replace(stage, inputs={"model": "nowhere"})], Hardware.of("cpu"), outside)


def test_a_stage_is_in_the_report(
    added_stage: None,
    finished: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    finish(finished["child"], "echo", {"times": 2}, {"model": finished["assembled"]})
    report(ReportSettings(), finished, stage_run(tmp_path / "report"))
    page = (tmp_path / "report/report.html").read_text()
    assert "fretsaw echo --model" in page
    assert "--times 2" in page


# --- a grader and a task --------------------------------------------------------------------------


def grade_length(answer: str, expected: Mapping[str, Any]) -> Grade:
    return Grade(float(len(answer) == expected["length"]), str(len(answer)))


def make_silences(
    num_problems: int, seed: int, split: str, options: Mapping[str, str]
) -> list[Problem]:
    length = int(options.get("length", 0))
    question = (Message("user", f"Say {length} letters."),)
    return [Problem(str(i), question, {"length": length}, "length") for i in range(num_problems)]


LENGTH_ROW = Grader(
    summary="the answer has so many letters",
    function="test_additions:grade_length",
    keys=("length",),
)
SILENCE_ROW = Task(
    summary="saying nothing",
    function="test_additions:make_silences",
    options=("length",),
    sampling={"on": Sampling(), "off": Sampling()},
    licence="Apache-2.0",
)


def test_a_grader_and_a_task_are_known_to_eval(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GRADERS, "length", LENGTH_ROW)
    monkeypatch.setitem(TASKS, "silence", SILENCE_ROW)
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"prompt": "?", "grader": "length", "expected": {"length": 0}}))
    options = ["--max-new-tokens", "4", "--num-problems", "3", "--device", "cpu"]
    command = ["eval", "--model", str(tiny / "parent"), "--task", f"silence:length=4 + {own}"]
    assert main([*command, *options, "--out", str(tmp_path / "eval")]) == 0
    tasks = json.loads((tmp_path / "eval/results.json").read_text())["tasks"]
    assert list(tasks) == ["silence:length=4", "own.jsonl"]
    assert len(tasks["silence:length=4"]["child"]["on"]["grades"]) == 3
    (problem,) = load_problems("silence:length=2", 1, seed=0)
    assert (problem.messages[-1].content, problem.grader) == ("Say 2 letters.", "length")
    with pytest.raises(ValueError, match="no option 'depth'; it has length"):
        load_problems("silence:depth=2", 1, seed=0)
    with pytest.raises(ValueError, match="unknown; use word_problems, "):
        load_problems("noise", 1, seed=0)


# --- an export target -----------------------------------------------------------------------------

PAPER_ROW = ExportTarget(
    name="paper",
    summary="the layers as they are printed",
    formats=("decilm",),
    needs_ffns=True,
    linear="kept",
)


def test_an_export_target_is_offered_and_searched_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPORT_TARGETS, "paper", PAPER_ROW)
    assert rules_of("paper").refusal(1, "ffn_none", 64) == "a layer without an FFN"
    command = ["export", str(tiny / "parent"), "--target", "paper", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert (tmp_path / "out/config.json").is_file()


def test_an_export_target_is_in_the_help(run_with_row) -> None:
    told = run_with_row("export", "--help")
    assert "nvidia,paper}" in told
    assert "paper: the layers as they are printed." in " ".join(told.replace("│", " ").split())
    for command in ("search", "compress"):
        assert "nvidia,paper}" in run_with_row(command, "--help").replace("\n", "")


@pytest.fixture
def run_with_row(monkeypatch: pytest.MonkeyPatch):
    """Run a command in a process whose table has the row from the beginning."""
    import subprocess
    import sys

    script = (
        "import sys\n"
        "from fretsaw.checkpoint.export_targets import EXPORT_TARGETS, ExportTarget\n"
        f"EXPORT_TARGETS['paper'] = {PAPER_ROW!r}\n"
        "from fretsaw.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return run


# --- a kind of attention --------------------------------------------------------------------------

RANK = 4


class LowRankMixer(nn.Module):
    """Two thin matrices in place of attention."""

    def __init__(self, hidden: int, precision: Any):
        super().__init__()
        self.inward, self.outward = linear(hidden, RANK, precision), linear(RANK, hidden, precision)

    @classmethod
    def build(cls, config: ModelConfig, size: int, precision: Any) -> "LowRankMixer":
        return cls(config.hidden_size, precision)

    @staticmethod
    def weights_from(half: GroupedQueryAttention) -> dict[str, Tensor]:
        whole = LinearMixer.weights_from(half)["linear_attn.weight"]
        left, values, right = torch.linalg.svd(whole)
        outward = left[:, :RANK] * values[:RANK]
        return {"inward.weight": right[:RANK].clone(), "outward.weight": outward.clone()}

    @property
    def output(self) -> nn.Linear:
        return self.outward

    def entering(self, x: Tensor, context: Any) -> Tensor:
        return self.inward(x)

    def forward(self, x: Tensor, context: Any) -> Tensor:
        return self.outward(self.inward(x))


LOW_RANK_ROW = SubblockKind(
    half="attention",
    name="low_rank",
    spelled="attn_low_rank",
    module="test_additions:LowRankMixer",
    matrices=lambda w, size: {"inward": (RANK, w.hidden_size), "outward": (w.hidden_size, RANK)},
    kept=lambda w, size: RANK,
    flag="replace_with_low_rank",
)


@pytest.fixture
def added_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, ("attention", "low_rank"), LOW_RANK_ROW)


@pytest.fixture
def child(added_kind: None, tiny: Path, tmp_path: Path) -> Path:
    """A child of `tiny` whose layer 1 has the new kind, on disk."""
    parent = folder.load(tiny / "parent").requires_grad_(False)
    names = [(b.attention_name, b.ffn_name) for b in parent.config.blocks]
    names[1] = ("attn_low_rank", names[1][1])
    blocks = blocks_from_names(names)
    layers = [b for b in parent.model.layers if isinstance(b, Block)]
    layers[1] = build_block(layers[1], parent.config, blocks[1], 1)
    decoder = parent.with_blocks(replace(parent.config, blocks=blocks), layers)
    folder.save(decoder, tmp_path / "child", like=tiny / "parent")
    return tmp_path / "child"


def test_a_kind_of_attention_is_searched(added_kind: None, tiny: Path, tmp_path: Path) -> None:
    block = BlockConfig.from_names("gqa4", "ffn64")
    assert layer_alternatives(block, SpaceSettings())[0][-1] == "attn_low_rank"
    with pytest.raises(ValueError, match="attn_none or attn_low_rank"):
        BlockConfig.from_names("attn_wide", "ffn64")
    read = [f"--{n}={tiny / n}" for n in ("parent", "corpus", "ranking")]
    space = ["--kv-heads", "1", "--ffn-percents", "50", "--seq-len", "64", "--device", "cpu"]
    scores = ["--tokens", "512", "--repair-tokens", "1024", "--out", str(tmp_path / "scores")]
    assert main(["score", *read, *space, *scores]) == 0
    layers = json.loads((tmp_path / "scores/scores.json").read_text())["layers"]
    assert all(layer["attention"]["attn_low_rank"]["score"] > 0 for layer in layers)
    costs = ["--engine", "roofline", "--scenario", "batch=4,in=16,out=16,dtype=fp32,device=cpu"]
    space = ["--kv-heads", "1", "--ffn-percents", "50"]
    assert main(["cost", read[0], *space, *costs, "--out", str(tmp_path / "costs")]) == 0
    found = ["--scores", str(tmp_path / "scores"), "--costs", str(tmp_path / "costs")]
    command = ["search", *found, "--target", "1.1x decode", "--engine", "transformers"]
    assert main([*command, "--out", str(tmp_path / "search")]) == 0
    table = json.loads((tmp_path / "search/table.json").read_text())
    assert table["layers"][0]["attention"]["attn_low_rank"]["params"] == 32 + 2 * RANK * 32
    assert not rules_of("vllm").linear
    assert rules_of("vllm").refusal(1, "attn_low_rank", 64) is not None


def test_a_kind_of_attention_is_computed_saved_and_served(child: Path) -> None:
    decoder = folder.load(child)
    config = decoder.config
    assert config.blocks[1].attention_name == "attn_low_rank"
    assert (
        decilm.config_from_json(decilm.config_to_json(config, dtype="fp32")).blocks == config.blocks
    )
    assert num_params(config) == sum(p.numel() for p in decoder.parameters())
    assert forward_flops(config, context=8) > 0
    matrix = output_matrix(decoder.model.layers[1], "attention")  # type: ignore[arg-type]
    assert matrix is not None
    assert matrix.weight.shape == (32, RANK)
    events = list(Engine(decoder).generate([ask((1, 2, 3), 8)]))
    made = naive(decoder, ask((1, 2, 3), 8))
    assert [event.token_id for event in events] == [token for token, _, _ in made]


def test_a_kind_of_attention_is_told_of(
    child: Path,
    finished: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", str(child)]) == 0
    assert "attn_low_rank" in capsys.readouterr().out
    assert main(["plan", str(child.parent.parent / "nowhere")]) == 2
    config = json.loads((finished["assembled"] / "config.json").read_text())
    config["block_configs"][1]["attention"] |= {"no_op": False, "replace_with_low_rank": True}
    write(finished["assembled"] / "config.json", config)
    costs = json.loads((finished["costs"] / "costs.json").read_text())
    costs["scenarios"][0]["alternatives"]["attn_low_rank"] = costs["scenarios"][0]["alternatives"][
        "gqa1"
    ]
    write(finished["costs"] / "costs.json", costs)
    report(ReportSettings(), finished, stage_run(tmp_path / "report"))
    assert ">low_rank</text>" in (tmp_path / "report/report.html").read_text()


def test_a_kind_of_attention_is_planned(
    added_kind: None, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = "batch=4,in=16,out=16,dtype=fp32,device=cpu"
    command = ["plan", str(tiny / "parent"), "--scenario", scenario, "--target", "1.2x decode"]
    assert main([*command, "--calibration-tokens", "4096"]) == 0
    assert "attn_low_rank" in capsys.readouterr().out


# --- the index of the documentation ---------------------------------------------------------------


def test_the_index_is_asked_for_a_page_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[dict, Any, Any, str]] = [
        (STAGES, "echo", ECHO_ROW, "stage echo"),
        (GRADERS, "length", LENGTH_ROW, "grader length"),
        (TASKS, "silence", SILENCE_ROW, "task silence"),
        (EXPORT_TARGETS, "paper", PAPER_ROW, "export target paper"),
        (KINDS, ("attention", "low_rank"), LOW_RANK_ROW, "kind attention low_rank"),
    ]
    for table, name, row, _ in rows:
        monkeypatch.setitem(table, name, row)
    assert undocumented() == []
    for table, name, row, _ in rows:
        monkeypatch.setitem(table, name, replace(row, page="nowhere.md"))
    assert undocumented() == [what for *_, what in rows]
