"""A recipe foreseen: shapes, hours, money, what does not fit or contradicts, what runs tell."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import start_here

from fretsaw.checkpoint.folder import read_config
from fretsaw.cli import main
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import (
    CptSettings,
    DistillSettings,
    PretrainSettings,
    TeachSettings,
    TrainSettings,
)
from fretsaw.eval.settings import EvalSettings
from fretsaw.model.config import ModelConfig
from fretsaw.model.size import forward_flops, num_params
from fretsaw.pipeline import launch
from fretsaw.pipeline.compression import compression
from fretsaw.pipeline.kinds import STAGES
from fretsaw.pipeline.recipe import Stage, find_recipe, inputs_of, load_recipe, published_of
from fretsaw.plan.calibration import Speeds, StageTime, factors, lines_through
from fretsaw.plan.forecast import calibrate, foresee, stages_of
from fretsaw.plan.rehearse import rehearse
from fretsaw.plan.render import render_forecast
from fretsaw.plan.shapes import outside, shapes_of
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.stages.search import child_of
from fretsaw.plan.work import Hardware, Shapes
from fretsaw.puzzle.settings import (
    AssembleSettings,
    CostSettings,
    FuseSettings,
    RankSettings,
    ScoreSettings,
    SearchSettings,
    SpaceSettings,
    VerifySettings,
)
from fretsaw.rl.settings import RlSettings
from fretsaw.scenario import hardware
from fretsaw.scenario.memory import gram_bytes
from fretsaw.scenario.processor import NO_INT8
from fretsaw.scenario.scenario import Scenario
from fretsaw.sft.settings import SftSettings
from fretsaw.stage.artifact import read_manifest

CPU = Hardware.of("cpu")
SCENARIO = "batch=2,in=8,out=8,dtype=fp32,device=cpu"
TRAIN = TrainSettings(
    tokens=2048, seq_len=64, batch_tokens=256, micro_batch_tokens=256, heldout_tokens=256
)


def tiny(**arguments: Any) -> list[Stage]:
    return load_recipe(find_recipe("tiny"), {"fast": False, **arguments})


def no_checkpoint(name: str) -> ModelConfig:
    raise AssertionError(f"{name} is asked for, but every checkpoint is made here")


# --- shapes, hours, money -------------------------------------------------------------------------


def test_shapes_follow_from_the_settings() -> None:
    shapes = shapes_of(tiny(), CPU, no_checkpoint)
    parent = shapes["rank"]["parent"]
    assert num_params(parent) == 1_640_576
    child = shapes["1.5x-decode/sft"]["model"]
    assert child == shapes["1.5x-decode/bench"]["child"] == shapes["1.5x-decode/search"]["child"]
    assert num_params(child) < num_params(parent)
    assert "corpus" not in shapes["1.5x-decode/sft-eval"]


def test_every_stage_that_can_be_run_can_be_foreseen() -> None:
    assert all(isinstance(kind.load_plan(), StagePlan) for kind in STAGES.values())


def test_hours_and_money_add_up() -> None:
    forecast = foresee(tiny(), CPU, no_checkpoint)
    hours = sum(stage.device_hours for stage in forecast.stages)
    text = render_forecast(forecast, title="tiny", price=3.0)
    (total,) = [line for line in text.splitlines() if line.startswith("in all")]
    assert f"{3 * hours:,.2f}" in total
    assert max(map(len, text.splitlines())) <= 100
    assert forecast.seconds == pytest.approx(
        sum(stage.seconds for stage in forecast.stages) + len(forecast.stages) * forecast.start_s
    )


def test_twice_the_tokens_take_twice_the_time() -> None:
    plain, longer = (
        {s.name: s for s in foresee(stages, CPU, no_checkpoint).stages}
        for stages in (tiny(), [twice(stage) for stage in tiny()])
    )
    assert longer["pretrain"].seconds / plain["pretrain"].seconds == pytest.approx(2, rel=0.01)
    assert longer["pretrain"].work.tokens == 2 * plain["pretrain"].work.tokens


def twice(stage: Stage) -> Stage:
    if stage.kind != "pretrain":
        return stage
    train = replace(stage.settings.train, tokens=2 * stage.settings.train.tokens)
    return replace(stage, settings=replace(stage.settings, train=train))


def test_eight_devices_share_what_they_can() -> None:
    stages = load_recipe(find_recipe("ln_super"), {"data": "text"})
    parent = published_of("ln_super").models["parent"]
    one, eight = (foresee(stages, Hardware.of(d), lambda _: parent) for d in ("h100", "h100x8"))
    by_name = [{s.name.rpartition("/")[2]: s for s in f.stages} for f in (one, eight)]
    assert by_name[0]["distill"].seconds / by_name[1]["distill"].seconds == pytest.approx(8)
    assert by_name[0]["distill"].device_hours == pytest.approx(by_name[1]["distill"].device_hours)
    assert by_name[0]["rank"].seconds == by_name[1]["rank"].seconds
    weights = [names["distill"].work.uses[0].weights for names in by_name]
    assert weights[0] / weights[1] == 8


def test_fusing_takes_longer_where_there_is_more_to_fuse() -> None:
    def took(name: str, settings: FuseSettings, hardware: Hardware = CPU) -> float:
        models = {"model": published_of("ln_ultra").models[name]}
        return (
            STAGES["fuse"]
            .load_plan()
            .work(settings, Shapes(frozenset(models), models), hardware)
            .seconds
        )

    exact, paper = FuseSettings(), FuseSettings(rule="paper")
    assert took("unfused", exact) > 2 * took("unfused", paper)
    assert took("parent", exact) == took("parent", paper), "no runs, no groups"
    h100, scenario = Hardware.of("h100"), "batch=64,in=64,out=64,dtype="
    fp32, bf16 = (FuseSettings(scenario=scenario + dtype) for dtype in ("fp32", "bf16"))
    assert took("unfused", bf16, h100) < took("unfused", fp32, h100)


def test_what_does_not_fit_is_said_with_a_remedy(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "ln_super", "--gpu", "rtx4090x2", "--price", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert "data not given" in err
    (distill,) = [x for x in " ".join(out.split()).split("! ") if x.startswith("80GB/distill:")]
    assert "do not fit 95% of a rtx4090; set" in distill
    assert "more devices" in distill
    assert max(map(len, out.splitlines())) <= 100


def test_a_child_out_of_reach_is_sized_as_the_parent(capsys: pytest.CaptureFixture) -> None:
    parent = shapes_of(tiny(), CPU, no_checkpoint)["rank"]["parent"]
    scenario = Scenario.parse(SCENARIO)
    assert child_of(parent, "900x decode", SpaceSettings(), scenario, CPU) == parent
    assert "sized for a child like the parent" in capsys.readouterr().err


def work_of(kind: str, settings: Any, on: Hardware, **inputs: ModelConfig | None) -> Any:
    models = {name: config for name, config in inputs.items() if config is not None}
    here = on.multiplying(casts=STAGES[kind].casts)
    return STAGES[kind].load_plan().work(settings, Shapes(frozenset(inputs), models), here)


def test_what_is_not_cast_runs_at_the_rate_of_fp32() -> None:
    parent, h100 = published_of("ln_nano").models["parent"], Hardware.of("h100")
    settings = EvalSettings(tokens=131_072)
    seconds = work_of("eval", settings, h100, model=parent, corpus=None).seconds
    flops = 131_072 * forward_flops(parent, context=128)
    assert seconds == pytest.approx(flops / (0.4 * 66.9e12))
    assert h100.multiplying(casts=STAGES["sft"].casts).dtype == "bf16"


def test_the_memory_of_a_refit_is_what_the_refit_asks_for() -> None:
    parent = published_of("ln_nano").models["parent"]
    (phase,) = work_of("rank", RankSettings(), CPU, parent=parent).uses
    assert phase.activations == gram_bytes(14_336) + 2 * 32_768 * 4 * 4096


def test_rows_that_do_not_divide_a_batch_are_foreseen_too() -> None:
    model = shapes_of(tiny(), CPU, no_checkpoint)["rank"]["parent"]
    assert work_of("sft", SftSettings(seq_len=768), CPU, model=model).seconds > 0


def test_problems_of_a_file_are_answered_too() -> None:
    model = shapes_of(tiny(), CPU, no_checkpoint)["rank"]["parent"]
    work = work_of("eval", EvalSettings(), CPU, model=model, problems=None)
    assert [phase.name for phase in work.uses] == ["answers"]
    by_text, by_task = (
        work_of("score", settings, CPU, parent=model).seconds
        for settings in (ScoreSettings(), ScoreSettings(metric="accuracy", task="word_problems"))
    )
    assert by_task > by_text


# --- what contradicts -----------------------------------------------------------------------------


def compressing(**changes: Any) -> list[Stage]:
    corpus = Stage("corpus", CorpusSettings(source="world", vocab_size=300))
    pretrain = Stage("pretrain", PretrainSettings(train=TRAIN), {"corpus": "corpus"})
    settings: dict[str, Any] = {
        "parent": "pretrain",
        "target": "1.2x decode",
        "scenario": SCENARIO,
        "under": "child",
        "distill": DistillSettings(train=TRAIN),
        **changes,
    }
    return [corpus, pretrain, *compression(**settings)]


def taught(**changes: Any) -> list[Stage]:
    stages = compressing(distill=DistillSettings(train=TRAIN, **changes))
    teach = Stage(
        "teach", TeachSettings(tokens=4096, seq_len=64), {"parent": "pretrain", "corpus": "corpus"}
    )
    at = next(i for i, stage in enumerate(stages) if stage.name == "child/distill")
    stages[at] = replace(stages[at], inputs={**stages[at].inputs, "teacher": "teach"})
    return [*stages[:at], teach, *stages[at:]]


def with_inputs(name: str, **inputs: str) -> list[Stage]:
    return [
        replace(stage, inputs={**stage.inputs, **inputs}) if stage.name == name else stage
        for stage in compressing()
    ]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (with_inputs("rank", corpus="child/eval"), "as its corpus, which comes after it"),
        (with_inputs("score", ranking="pretrain"), "is made by rank, not by pretrain"),
        (with_inputs("score", ranking="nothing"), "no folder has that name; a rank stage"),
        (with_inputs("score", colour="rank"), "stage 'score' has an unknown 'colour'"),
        (compressing()[:3] + compressing()[4:], "'score' as its scores, but no stage"),
        ([*compressing(), compressing()[0]], "two stages are named 'corpus'"),
        (
            compressing(score=ScoreSettings(space=SpaceSettings(precisions=("int8",)))),
            "'score' scores attn_linear@int8, .*which 'cost' does not cost",
        ),
        (compressing(target="2x decode @ batch=64"), "names no scenario that 'cost' costs"),
        (with_inputs("rank", parent="some/llama"), "'corpus', which trains a tokenizer of its own"),
        (compressing(rank=RankSettings(seq_len=2048)), "seq_len of 2048 tokens, but"),
        (compressing(scenario="in=8,out=4000"), "of 4008 tokens, but the context of its parent"),
        (taught(cosine_weight=0.0), "but 'teach' stores answers for tokens 4096"),
        (
            [*compressing(), Stage("rl", RlSettings(max_tokens=5000), {"model": "child/distill"})],
            "stage 'rl': max_tokens of 5000 tokens",
        ),
    ],
)  # fmt: skip
def test_stages_that_contradict_each_other(stages: list[Stage], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foresee(stages, CPU, no_checkpoint)


def test_what_goes_together_is_not_refused() -> None:
    fewer = ScoreSettings(space=SpaceSettings(linear=False))  # of what is costed
    foresee(compressing(score=fewer), CPU, no_checkpoint)
    longer = replace(TRAIN, lengths=("seq_len=2048,tokens=4096,factor=4",),
                     batch_tokens=4096, micro_batch_tokens=4096, tokens=4096)  # fmt: skip
    stages = [
        *compressing()[:2],
        Stage("small", PretrainSettings(train=TRAIN), {"corpus": "corpus"}),
        Stage("taught", DistillSettings(train=TRAIN),
              {"child": "small", "parent": "pretrain", "corpus": "corpus"}),
        Stage("cpt", CptSettings(train=longer), {"model": "taught", "corpus": "corpus"}),
        Stage("sft", SftSettings(source="world", seq_len=2048), {"model": "cpt"}),
    ]  # fmt: skip
    shapes = shapes_of(stages, CPU, no_checkpoint)
    assert shapes["sft"]["model"].max_position_embeddings == 2048
    foresee(stages, CPU, no_checkpoint)


def test_a_rehearsal_of_a_gpu_needs_one(capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["plan", "tiny", "--rehearse", "--gpu", "h100"]) == 2
    assert "which has no GPU; rehearse there" in capsys.readouterr().err


def test_recipe_options_make_a_published_recipe_a_recipe(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "ln_nano", "--price", "3"]) == 0
    assert "sft-reasoning" in capsys.readouterr().out
    assert main(["plan", "ln_nano"]) == 0
    assert "parameters" in capsys.readouterr().out


def test_bad_words_are_one_sentence_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "m").mkdir()
    for arguments, message in (
        (["tiny", "--gpu", "h1000"], "did you mean 'h100'"),
        (["tiny", "--measured", str(tmp_path)], "no run of a recipe (no run.json)"),
        (["tiny", "--measured", str(tmp_path), "--rehearse"], "give one of them"),
        (["tiny", "--price", "-1"], "dollars a device and hour are 0 or more"),
        (["tiny", "--set", "rank.colour=red"], "unknown key 'colour'"),
        (["tiny", "--arg", "fast"], "write key=value"),
        ([str(tmp_path / "m"), "--gpu", "h100"], "--gpu is of a recipe"),
        ([str(tmp_path / "none.py"), "--gpu", "h100"], "no such recipe file"),
        (["tiny", "--target", "3x decode"], "--target is of a checkpoint, and tiny is a recipe"),
        (["stories", "--arg", "text=x"], "the recipe needs checkpoint; give --arg checkpoint="),
    ):
        assert main(["plan", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error, error
        assert "Traceback" not in error


# --- what runs tell -------------------------------------------------------------------------------


def test_factors_and_lines_by_hand() -> None:
    points = [StageTime("rank", 1.0, 5.0), StageTime("rank", 3.0, 9.0), StageTime("eval", 2.0, 1.0)]
    assert factors(points) == {"rank": (0.0, 3.5), "eval": (0.0, 0.5)}
    assert lines_through(points) == {"rank": (3.0, 2.0), "eval": (0.0, 0.5)}
    # The more work took less time: noise, so all of it is one factor.
    assert lines_through([StageTime("a", 1.0, 4.0), StageTime("a", 3.0, 2.0)]) == {"a": (0.0, 1.5)}
    assert (
        factors([StageTime("report", 0.0, 1.0)])
        == lines_through([StageTime("report", 0.0, 1.0)])
        == {}
    )
    calibration = Speeds({"rank": (3.0, 2.0)})
    assert calibration.seconds("rank", 10.0) == (23.0, True)
    assert calibration.seconds("rl", 10.0) == (10.0, False)


def small(parent: str) -> list[Stage]:
    """A short recipe from a checkpoint that is there, to a tuned and reinforced child."""
    space = SpaceSettings(kv_heads=(2,), ffn_percents=(50,), linear=False)
    stages = compression(
        parent=parent,
        target="0.8x params",
        scenario=SCENARIO,
        under="child",
        rank=RankSettings(tokens=1024, seq_len=64),
        score=ScoreSettings(space=space, tokens=512, repair_tokens=512, seq_len=64, batch_rows=4),
        cost=CostSettings(space=space, scenario=SCENARIO, rounds=1, layers=1, probes=0),
        search=SearchSettings(engine="transformers"),
        assemble=AssembleSettings(tokens=1024, seq_len=64),
        distill=DistillSettings(train=TRAIN),
        evaluate=EvalSettings(tokens=512, seq_len=64),
        in_8_bits=("int8",),
    )
    stages = [stage for stage in stages if stage.kind != "report"]
    corpus = CorpusSettings(source="world", max_tokens=20_000, heldout_tokens=2000, seq_len=64)
    sft = SftSettings(
        source="world", num_rows=40, seq_len=256, batch_tokens=256, micro_batch_tokens=256
    )
    rl = RlSettings(
        num_problems=16,
        num_rollouts=2,
        prompts_per_rollout=2,
        group_size=2,
        max_tokens=16,
        updates_per_rollout=1,
    )
    return [
        Stage("corpus", corpus, {"parent": parent}),
        *stages,
        Stage("sft", sft, {"model": "child/distill"}),
        Stage("rl", rl, {"model": "sft"}),
    ]


def test_int8_that_this_processor_does_not_multiply_is_noted(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_able in (True, False):
        monkeypatch.setattr(hardware, "multiplies_int8", lambda is_able=is_able: is_able)
        stages = small(str(tiny / "parent"))
        forecast = foresee(stages, Hardware.of("cpu"), outside)
        noted = [stage.name for stage in forecast.stages if stage.work.note]
        assert noted == ([] if is_able else ["parent-int8"])
        text = " ".join(render_forecast(forecast, title="small").split())
        assert (f"parent-int8: {NO_INT8}" in text) == (not is_able)
    space = SpaceSettings(kv_heads=(2,), linear=False, precisions=("fp8", "int8"))
    settings = CostSettings(space=space, scenario=SCENARIO)
    costs = Stage("cost", settings, {"parent": str(tiny / "parent")})
    assert foresee([costs], Hardware.of("cpu"), outside).stages[0].work.note == NO_INT8
    assert foresee([costs], Hardware.of("h100"), outside).stages[0].work.note == ""


def test_a_rehearsal_tells_the_speed_of_every_kind(tiny: Path) -> None:
    stages = small(str(tiny / "parent"))
    calibration = rehearse(stages, CPU, outside, device="cpu", dtype="fp32")
    told = {stage.kind for stage in stages} - {"search"}
    assert calibration.lines.keys() == told
    assert all(start >= 0 and factor > 0 for start, factor in calibration.lines.values())
    forecast = foresee(stages, CPU, outside, calibration)
    assert [s.name for s in forecast.stages if not s.is_calibrated] == ["child/search"]


def test_what_is_rehearsed_alone(tiny: Path) -> None:
    parent = str(tiny / "parent")
    teach = TeachSettings(tokens=4096, seq_len=64, micro_batch_tokens=256, heldout_tokens=64)
    rl = RlSettings(
        num_problems=16,
        num_rollouts=2,
        prompts_per_rollout=2,
        group_size=2,
        max_tokens=16,
        updates_per_rollout=1,
    )
    stages = [
        Stage("corpus", CorpusSettings(source="world", seq_len=64), {"parent": parent}),
        Stage("teach", teach, {"parent": parent, "corpus": "corpus"}),
    ]
    config = read_config(tiny / "parent")
    assert "teach" in rehearse(stages, CPU, outside, device="cpu", dtype="fp32").lines
    chat = [Stage("rl", rl, {"model": "some/chat-model"})]  # on the Hub: its tokenizer is not here
    told = rehearse(chat, CPU, lambda _: config, device="cpu", dtype="fp32")
    assert "rl" in told.lines
    corpus = CorpusSettings(source="world", seq_len=64)
    trained = [
        Stage("corpus", corpus, {"parent": "some/chat-model"}),
        Stage("cpt", CptSettings(train=TRAIN), {"model": "some/chat-model", "corpus": "corpus"}),
        Stage("rl", rl, {"model": "cpt"}),
    ]
    told = rehearse(trained, CPU, lambda _: config, device="cpu", dtype="fp32")
    assert told.lines.keys() == {"corpus", "cpt", "rl"}


def test_an_earlier_run_tells_its_own_length(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "start", start_here)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_forecast import small\n"
        f"def recipe():\n    return [s for s in small({str(tiny / 'parent')!r})"
        " if s.kind not in ('sft', 'rl')]\n"
    )
    out = tmp_path / "run"
    assert main(["run", str(recipe), "--out", str(out), "--device", "cpu"]) == 0
    stages = load_recipe(recipe, {})
    assert [replace(s, launcher="python") for s in stages_of(out, [s.name for s in stages])] == [
        replace(s, inputs={k: flat(v) for k, v in s.inputs.items()}) for s in stages
    ]
    calibration = calibrate(out, CPU)
    forecast = foresee(stages, CPU, outside, calibration, earlier=out)
    took = sum(read_manifest(out / s.name)["run"]["wall_s"] for s in stages)
    assert sum(s.seconds for s in forecast.stages) == pytest.approx(took, rel=0.02)
    assert calibration.source == f"the run in {out}"

    # With a second target the first one's stages are recorded before those that both share.
    raw = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**raw, "stages": raw["stages"][::-1]}))
    assert calibrate(out, CPU).lines == calibration.lines
    (out / "run.json").write_text(json.dumps(raw))

    # Stages that ended within one second, too, come after what they read.
    names = [stage.name for stage in stages]
    assert {s.name for s in stages_of(out, names[::-1])} == set(names)
    for number, stage in enumerate(ordered := stages_of(out, names[::-1])):
        before = {one.name for one in ordered[:number]}
        assert all(value in before for _, value in inputs_of(stage) if value in names)

    # Finished folders are inputs as good as stages.
    kinds = {stage.kind: stage for stage in stages}
    paths = {name: str(out / name) for name in ("corpus", "rank", "score", "cost", "child/search")}
    parent = str(stages[1].inputs["parent"])
    outer = [
        replace(kinds["search"], inputs={"scores": paths["score"], "costs": paths["cost"]}),
        replace(kinds["assemble"], inputs={"parent": parent, "corpus": paths["corpus"],
                                           "ranking": paths["rank"],
                                           "search": paths["child/search"]}),
        Stage("pretrain", PretrainSettings(train=TRAIN), {"corpus": paths["corpus"]}),
    ]  # fmt: skip
    found = shapes_of(outer, CPU, outside)
    assert found["child/assemble"]["search"] == read_config(out / "child/assemble")
    assert found["pretrain"]["model"].vocab_size == read_config(Path(parent)).vocab_size
    given = {"parent": parent, "corpus": paths["corpus"], "ranking": paths["rank"]}
    verified = [
        Stage("verify", VerifySettings(), {**given, "search": paths["child/search"]}),
        Stage("assemble", kinds["assemble"].settings, {**given, "search": "verify"}),
    ]
    assert "assemble" in rehearse(verified, CPU, outside, device="cpu", dtype="fp32").lines

    child = read_config(out / "child/distill")
    shapes = shapes_of(stages, CPU, outside, out)
    assert shapes["child/bench"]["child"] == child, "the child that was found, not a stand-in"
    assert json.loads((out / "run.json").read_text())["stages"] == [s.name for s in stages]


def flat(value: Any) -> Any:
    return str(value[0] if isinstance(value, list) else value)
