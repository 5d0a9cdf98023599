"""Precision as an axis of the search: scored, costed, chosen, assembled, healed and exported."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import stage_run

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.distill.settings import DistillSettings, TrainSettings
from fretsaw.eval.evaluate import evaluate
from fretsaw.eval.settings import EvalSettings
from fretsaw.export.export import export
from fretsaw.model.config import BlockConfig
from fretsaw.model.quantised import everywhere, quantised
from fretsaw.model.size import block_bytes
from fretsaw.pipeline.kinds import STAGES
from fretsaw.puzzle.children.verify import verify
from fretsaw.puzzle.costs.cost import cost
from fretsaw.puzzle.fuse.candidates import as_searched
from fretsaw.puzzle.library.replay import Replay
from fretsaw.puzzle.search.rules import rules_of
from fretsaw.puzzle.search.search import search
from fretsaw.puzzle.settings import (
    AssembleSettings,
    CostSettings,
    FuseSettings,
    ScoreSettings,
    SearchSettings,
    SpaceSettings,
    VerifySettings,
)
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.scenario import hardware
from fretsaw.scenario.memory import memory_costs
from fretsaw.scenario.roofline import roofline_costs, subblock_work
from fretsaw.scenario.scenario import Scenario
from fretsaw.sft.settings import SftSettings
from fretsaw.stage.artifact import StageRequest
from fretsaw.stage.execute import execute

SPACE = SpaceSettings(kv_heads=(2,), ffn_percents=(50,), linear=False, precisions=("fp8", "int8"))
SCENARIO = "batch=2,in=8,out=8,dtype=fp32,device=cpu"


def made(kind: str, settings, inputs: dict[str, Path], out: Path) -> Path:
    request = StageRequest.of(kind, settings, inputs, 0)
    execute(STAGES[kind].load(), request, settings, out, device="cpu", dtype="fp32")
    return out


@pytest.fixture(scope="module")
def parts(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("precision")
    parent = {name: tiny / name for name in ("parent", "corpus", "ranking")}
    scoring = ScoreSettings(space=SPACE, repair_tokens=1024, tokens=1024, seq_len=64, batch_rows=4)
    timing = CostSettings(space=SPACE, scenario=SCENARIO, engine="roofline")
    scores = made("score", scoring, parent, root / "score")
    costs = made("cost", timing, {"parent": parent["parent"]}, root / "cost")
    asking = SearchSettings(target="40% memory", num_solutions=3)
    found = made("search", asking, {"scores": scores, "costs": costs}, root / "search")
    return {**parent, "scores": scores, "costs": costs, "search": found}


def test_every_subblock_that_is_there_has_each_precision() -> None:
    block = BlockConfig(num_key_value_heads=4, intermediate_size=64)
    attention, ffn = layer_alternatives(block, SPACE)
    assert attention == (
        *("gqa4", "gqa4@fp8", "gqa4@int8", "gqa2", "gqa2@fp8", "gqa2@int8"), "attn_none"
    )  # fmt: skip
    assert ffn[:3] == ("ffn64", "ffn64@fp8", "ffn64@int8")
    assert "ffn_none@fp8" not in ffn


def test_a_score_is_that_of_the_rounded_subblock(parts: dict[str, Path]) -> None:
    layers = json.loads((parts["scores"] / "scores.json").read_text())["layers"]
    parent = checkpoint.load(parts["parent"])
    windows = loader.first_rows(parts["corpus"] / "heldout.npy", 64, 1024)
    blocks = list(parent.config.blocks)
    blocks[1] = replace(blocks[1], ffn_precision="int8")
    with torch.inference_mode():
        replay = Replay(parent, torch.from_numpy(windows), 4)
        expected = replay.figures_of(quantised(parent, tuple(blocks))).kl.mean().item()
    assert layers[1]["ffn"]["ffn64@int8"]["score"] == pytest.approx(expected, rel=0.05)
    for layer in layers:
        assert 0 < layer["ffn"]["ffn64@int8"]["score"] < layer["ffn"]["ffn32"]["score"]


def test_memory_and_time_know_the_precision(parts: dict[str, Path]) -> None:
    config, scenario = checkpoint.read_config(parts["parent"]), Scenario.parse(SCENARIO)
    own = config.blocks[0]
    stored = own.stored("full", "int8")
    saved = memory_costs(config, "ffn64", scenario)["memory_mib"]
    saved -= memory_costs(config, "ffn64@int8", scenario)["memory_mib"]
    expected = block_bytes(config, own, "fp32").ffn - block_bytes(config, stored, "fp32").ffn
    assert saved == pytest.approx(expected / 2**20)
    large = replace(config, hidden_size=4096, num_attention_heads=32, head_dim=128)
    served = Scenario(batch=64, prompt_tokens=1024, output_tokens=1024, dtype="bf16", device="h100")
    names = ("gqa8", "gqa8@fp8", "ffn14336", "ffn14336@fp8")
    _, costs = roofline_costs(large, names, served)
    assert costs["ffn14336"]["prefill_ms"] / costs["ffn14336@fp8"]["prefill_ms"] > 1.9
    assert costs["ffn14336"]["decode_ms"] / costs["ffn14336@fp8"]["decode_ms"] > 1.7
    assert costs["gqa8"]["params"] == costs["gqa8@fp8"]["params"]


def test_a_processor_that_multiplies_no_integers_runs_int8_as_float32(
    parts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, scenario = checkpoint.read_config(parts["parent"]), Scenario.parse(SCENARIO)
    names = ("ffn64", "ffn64@int8")
    for is_able in (True, False):
        monkeypatch.setattr(hardware, "multiplies_int8", lambda is_able=is_able: is_able)
        _, costs = roofline_costs(config, names, scenario)
        full, eight = (costs[name] for name in names)
        for phase in ("prefill_ms", "decode_ms"):
            assert (eight[phase] < full[phase]) == is_able
            assert is_able or eight[phase] == pytest.approx(full[phase], rel=0.01)
        assert eight["memory_mib"] < full["memory_mib"]  # of the file, either way
        assert hardware.find_device("h100").multiplies_int8


def test_attention_scores_stay_in_full_precision(parts: dict[str, Path]) -> None:
    config = checkpoint.read_config(parts["parent"])
    large = replace(config, hidden_size=4096, num_attention_heads=32, head_dim=128)
    scenario = Scenario(batch=1, prompt_tokens=16_384, output_tokens=1, dtype="bf16", device="h100")
    full, eight = (subblock_work(large, n, scenario, "prefill_ms") for n in ("gqa8", "gqa8@int8"))
    scores = 16_384 * 4 * 8192 * 4096
    assert eight.flops == pytest.approx(scores)
    assert eight.int8_flops == pytest.approx(full.flops - scores)
    assert eight.fp8_flops == full.int8_flops == 0


def test_measured_costs_have_the_precisions_too(tiny: Path, tmp_path: Path) -> None:
    settings = CostSettings(space=SPACE, scenario=SCENARIO, rounds=1, layers=1, probes=1)
    cost(settings, {"parent": tiny / "parent"}, stage_run(tmp_path))
    alternatives = json.loads((tmp_path / "costs.json").read_text())["alternatives"]
    assert {"gqa4@fp8", "ffn64@int8"} <= alternatives.keys()
    eight = replace(settings, engine="roofline", scenario=SCENARIO.replace("fp32", "int8"))
    with pytest.raises(ValueError, match="has every matrix in 8 bits, so the space has no choice"):
        cost(eight, {"parent": tiny / "parent"}, stage_run(tmp_path / "int8"))


def test_a_search_takes_bits_before_weights_and_the_child_is_served_so(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    choices = json.loads((parts["search"] / "solutions.json").read_text())[0]["choices"]
    names = [name for pair in choices for name in pair]
    assert any("@" in name for name in names)

    inputs = {key: parts[key] for key in ("parent", "corpus", "ranking", "search")}
    repairing = AssembleSettings(tokens=1024, seq_len=64)
    child = made("assemble", repairing, inputs, tmp_path / "assemble")
    assert not checkpoint.read_config(child).is_quantised
    served = checkpoint.read_served_config(child).blocks
    assert [[b.attention_name, b.ffn_name] for b in served] == choices

    train = TrainSettings(
        tokens=512, seq_len=64, batch_tokens=256, micro_batch_tokens=256, heldout_tokens=256
    )
    given = {"child": child, "parent": parts["parent"], "corpus": parts["corpus"]}
    healed = made("distill", DistillSettings(train=train), given, tmp_path / "distill")
    assert checkpoint.read_served_config(healed).blocks == served

    tuning = SftSettings(
        source="world", num_rows=20, seq_len=256, batch_tokens=256, micro_batch_tokens=256
    )
    tuned = made("sft", tuning, {"model": healed}, tmp_path / "sft")
    assert checkpoint.read_served_config(tuned).blocks == served
    plain = export(healed, tmp_path / "plain", weights="full", target="transformers").out
    assert checkpoint.read_served_config(plain).blocks == checkpoint.read_config(child).blocks

    exported = export(healed, tmp_path / "out")
    assert exported.in_8_bits
    assert "config.json" in {path.name for path in exported.out.iterdir()}
    assert checkpoint.read_config(exported.out).blocks == served
    settings = EvalSettings(tokens=512, seq_len=64)
    figures = []
    for model, out in ((healed, tmp_path / "e1"), (exported.out, tmp_path / "e2")):
        given = {"model": model, "parent": parts["parent"], "corpus": parts["corpus"]}
        result = made("eval", settings, given, out) / "results.json"
        figures.append(json.loads(result.read_text()))
    assert figures[0]["kl"] == pytest.approx(figures[1]["kl"], rel=1e-6)


def test_the_parent_in_8_bits_is_evaluated_beside_itself(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    kls = {}
    for weights in ("full", "fp8", "int8"):
        settings = EvalSettings(tokens=512, seq_len=64, weights=weights)
        inputs = {"model": parts["parent"], "parent": parts["parent"], "corpus": parts["corpus"]}
        kls[weights] = evaluate(settings, inputs, stage_run(tmp_path / weights))["kl"]
    assert kls["full"] == 0 < kls["int8"] < kls["fp8"] < 0.1


def test_whole_children_are_measured_as_served(parts: dict[str, Path], tmp_path: Path) -> None:
    inputs = {key: parts[key] for key in ("parent", "corpus", "ranking", "search")}
    settings = VerifySettings(
        children=2, rounds=1, repair_tokens=1024, tokens=512, seq_len=64, batch_rows=4
    )
    verify(settings, inputs, stage_run(tmp_path))
    children = json.loads((tmp_path / "correction.json").read_text())["children"]
    assert any("@" in name for child in children for pair in child["choices"] for name in pair)


def test_engines_that_read_no_8_bits_refuse_them(parts: dict[str, Path], tmp_path: Path) -> None:
    assert rules_of("vllm").refusal(1, "gqa4@fp8", 64) is None
    assert rules_of("llama.cpp").refusal(1, "gqa4@fp8", 64) == "matrices in 8 bits"
    inputs = {"scores": parts["scores"], "costs": parts["costs"]}
    settings = SearchSettings(target="60% memory", engine="transformers")
    search(settings, inputs, stage_run(tmp_path))
    choices = json.loads((tmp_path / "solutions.json").read_text())[0]["choices"]
    assert not any("@" in name for pair in choices for name in pair)


def test_what_is_fused_is_read_of_the_solution_of_these_precisions(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    config = checkpoint.read_config(parts["parent"])
    both = [config.blocks, everywhere(config, "int8")]
    solutions = [
        {"choices": [[b.attention_name, b.ffn_name] for b in blocks], "fused": fused}
        for blocks, fused in zip(both, (["0-1"], []), strict=True)
    ]
    (tmp_path / "solutions.json").write_text(json.dumps(solutions[::-1]))
    for blocks, fused in zip(both, (("0-1",), ()), strict=True):
        served = replace(config, blocks=blocks)
        assert as_searched(FuseSettings(), tmp_path, served).groups == fused
