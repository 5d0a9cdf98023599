"""The plan: roofline costs worked by hand, exact memory, what it says of a target, its speed."""

from dataclasses import replace

import pytest

from fretsaw.model.config import ModelConfig
from fretsaw.model.size import embedding_params, kv_bytes, num_params
from fretsaw.plan.compression import Plan, make_plan, render_plan
from fretsaw.puzzle.costs.closed_form import roofline_table
from fretsaw.puzzle.search.solutions import search_table
from fretsaw.puzzle.space import default_alternatives
from fretsaw.scenario.hardware import find_device
from fretsaw.scenario.scenario import MIB, Scenario


def llama_8b() -> ModelConfig:
    return ModelConfig.uniform(
        num_hidden_layers=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
        hidden_size=4096,
        num_attention_heads=32,
        head_dim=128,
    )


def plan_of(config: ModelConfig, target: str, scenario: str = "") -> Plan:
    return make_plan(
        config,
        scenario=Scenario.parse(scenario),
        target=target,
        calibration_tokens=65_536,
        distill_tokens=10_000_000,
    )


@pytest.mark.parametrize("tied", [False, True])
def test_memory_and_params_are_exact(tied):
    config = replace(llama_8b(), tie_word_embeddings=tied)
    plan = plan_of(config, "1.5x decode", "batch=4,in=100,out=28")
    kv_mib = kv_bytes(config, "bf16") * 4 * 128 / MIB
    assert plan.parent_costs["params"] == num_params(config)
    assert plan.parent_costs["memory_mib"] == pytest.approx(2 * num_params(config) / MIB + kv_mib)
    assert embedding_params(config) == (1 if tied else 2) * 128256 * 4096 + 4096


def test_the_score_is_the_share_of_block_parameters_removed():
    config = llama_8b()
    table = roofline_table(config, default_alternatives(config), Scenario())
    (parent,) = search_table(table, {})
    assert parent.score == 0
    assert set(parent.choices) == {("gqa8", "ffn14336")}
    emptied = sum(layer[s][f"{n}_none"].score for layer in table.layers
                  for s, n in (("attention", "attn"), ("ffn", "ffn")))  # fmt: skip
    assert emptied == pytest.approx(1)


def test_a_target_is_met_by_the_child():
    plan = plan_of(llama_8b(), "1.5x decode, 70% memory")
    assert plan.child is not None
    assert plan.infeasible is None
    assert plan.child.costs["decode_ms"] <= plan.parent_costs["decode_ms"] / 1.5
    assert plan.child.costs["memory_mib"] <= plan.parent_costs["memory_mib"] * 0.7
    assert plan.space_log10 == pytest.approx(32 * 1.7782, abs=1e-2)  # 6 x 10 a layer
    names = [stage.name.removeprefix("child/") for stage in plan.forecast.stages]
    assert names == ["corpus", "rank", "score", "cost", "search", "assemble", "distill", "eval"]
    assert all(stage.seconds > 0 for stage in plan.forecast.stages)


def test_faster_points_keep_fewer_parameters():
    points = [p for p in plan_of(llama_8b(), "1.5x decode").front if p.quantity == "decode"]
    shares = [p.params_share for p in points]
    assert [p.speedup for p in points][:4] == [1.25, 1.5, 2.0, 3.0]
    assert points[-1].is_largest
    assert None not in shares
    assert shares == sorted(shares, key=lambda share: -(share or 0))


def test_out_of_reach_is_said_and_planned_around():
    plan = plan_of(llama_8b(), "500x decode")
    assert plan.child is None
    assert "decode_ms cannot go that low" in (plan.infeasible or "")
    assert "decode_ms cannot go that low" in render_plan(plan)


def test_a_tiny_model_on_a_cpu_has_points_out_of_reach():
    config = ModelConfig.uniform(
        num_hidden_layers=2, num_key_value_heads=2, intermediate_size=64, vocab_size=4096,
        hidden_size=64, num_attention_heads=4, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    text = render_plan(plan_of(config, "1.1x decode", "batch=1,in=64,out=64,dtype=fp32,device=cpu"))
    assert "out of reach" in text


def test_an_unlisted_device_cannot_be_planned_for():
    with pytest.raises(ValueError, match="did you mean 'h100'"):
        plan_of(llama_8b(), "1.5x decode", "device=h1000")


@pytest.mark.parametrize("name", ["calibration", "distill", "micro_batch"])
def test_amounts_of_nothing_are_refused(name: str) -> None:
    amounts = {"calibration_tokens": 512, "distill_tokens": 512, f"{name}_tokens": 0}
    scenario = Scenario.parse("device=h100")
    with pytest.raises(ValueError, match=f"{name}_tokens 0; give 1 or more"):
        make_plan(llama_8b(), scenario=scenario, target="2x decode", **amounts)


def test_a_70b_is_planned_in_100_columns():
    config = ModelConfig.uniform(
        num_hidden_layers=80, num_key_value_heads=8, intermediate_size=28672, vocab_size=128256,
        hidden_size=8192, num_attention_heads=64, head_dim=128,
    )  # fmt: skip
    text = render_plan(plan_of(config, "2x decode, 60% memory", "device=h100x8"))
    assert "70.6B parameters, 80 layers" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("config", "device", "options"),
    [
        (llama_8b(), "h100", "--master bf16"),
        (
            ModelConfig.uniform(
                num_hidden_layers=16, num_key_value_heads=8, intermediate_size=8192,
                vocab_size=128256, hidden_size=2048, num_attention_heads=32, head_dim=64,
                tie_word_embeddings=True,
            ),
            "rtx4090",
            "--states int8",
        ),
    ],
    ids=["8B on 80 GB", "1B on 24 GB"],
)  # fmt: skip
def test_a_child_heals_on_one_device_with_the_settings_named(config, device, options):
    scenario = Scenario.parse(f"device={device}")
    plan = make_plan(
        config, scenario=scenario, target="1.5x decode", calibration_tokens=65_536,
        distill_tokens=10_000_000, seq_len=2048, micro_batch_tokens=2048,
    )  # fmt: skip
    assert f"{options}  <- the plainest that fits" in render_plan(plan)
    (distill,) = [stage for stage in plan.forecast.stages if stage.name == "child/distill"]
    (phase,) = distill.work.uses
    assert phase.memory < 0.95 * find_device(device).memory_bytes
    (chosen,) = [rung for rung in plan.rungs if rung.options.endswith(options)]
    assert phase.memory == pytest.approx(chosen.bytes.peak)
    peaks = [rung.bytes.peak for rung in plan.rungs]
    assert peaks == sorted(peaks, reverse=True)
