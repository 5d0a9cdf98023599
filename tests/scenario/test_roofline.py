"""Rooflines worked by hand, on one device and on eight, and constants found again."""

import random

import pytest

from fretsaw.model.config import ModelConfig
from fretsaw.puzzle.costs.closed_form import roofline_table
from fretsaw.puzzle.costs.roofline_fit import TimedWork, fit_roofline
from fretsaw.puzzle.space import default_alternatives
from fretsaw.scenario.hardware import find_device
from fretsaw.scenario.memory import memory_costs
from fretsaw.scenario.roofline import (
    LAUNCHES,
    Constants,
    DeviceWork,
    roofline_costs,
    seconds,
    subblock_work,
)
from fretsaw.scenario.scenario import MIB, Scenario

LLAMA_8B = ModelConfig.uniform(
    num_hidden_layers=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    vocab_size=128256,
    hidden_size=4096,
    num_attention_heads=32,
    head_dim=128,
)
H100 = find_device("h100")


def scenario(device: str = "h100") -> Scenario:
    return Scenario(batch=8, prompt_tokens=1000, output_tokens=10, device=device)


def test_an_ffn_decodes_at_the_bandwidth_and_prefills_at_the_peak() -> None:
    table = roofline_table(LLAMA_8B, default_alternatives(LLAMA_8B), scenario())
    costs = table.layers[0]["ffn"]["ffn14336"].costs
    params = 3 * 4096 * 14336 + 4096
    launch_s = LAUNCHES["ffn"] * H100.launch_s
    decode_s = 10 * (2 * params / H100.memory_bandwidth + launch_s)
    prefill_s = 2 * 3 * 4096 * 14336 * 8000 / H100.bf16_flops + launch_s
    assert costs["decode_ms"] == pytest.approx(1e3 * decode_s)
    assert costs["prefill_ms"] == pytest.approx(1e3 * prefill_s)
    assert table.layers[0]["ffn"]["ffn_none"].costs["decode_ms"] == 0
    assert costs["decode_ms"] > table.layers[0]["ffn"]["ffn7168"].costs["decode_ms"]


def test_eight_devices_divide_the_work_and_sum_once_a_subblock() -> None:
    eight = scenario("h100x8")
    _, alternatives = roofline_costs(LLAMA_8B, ["gqa8", "ffn14336"], eight)
    # An eighth of three matrices, the whole norm; 8 rows of 4096 bf16 numbers to sum, ten times.
    moved = 2 * (3 * 4096 * 14336 / 8 + 4096)
    ring_s = 2 * 2 * 7 / 8 * (8 * 4096 * 2) / H100.link_bandwidth
    step_s = moved / H100.memory_bandwidth + LAUNCHES["ffn"] * H100.launch_s
    step_s += H100.all_reduce_latency_s + ring_s
    assert alternatives["ffn14336"]["decode_ms"] == pytest.approx(1e3 * 10 * step_s)
    # Attention: q and o an eighth each, k and v one head of 128 each; KV of 8 rows of 1005 tokens.
    work = subblock_work(LLAMA_8B, "gqa8", eight, "decode_ms")
    weights = 2 * 4096 * 4096 / 8 + 2 * 4096 * 128 + 4096
    assert work.moved_bytes == pytest.approx(10 * 2 * (weights + 2 * 128 * 8 * 1005))
    assert (work.launches, work.all_reduces) == (10 * LAUNCHES["attention"], 10)
    assert subblock_work(LLAMA_8B, "gqa8", scenario(), "decode_ms").all_reduces == 0


def test_fewer_kv_heads_than_devices_are_held_by_several() -> None:
    eight = scenario("h100x8")
    for phase in ("prefill_ms", "decode_ms"):
        own, fewer = (subblock_work(LLAMA_8B, name, eight, phase) for name in ("gqa8", "gqa2"))
        assert own == fewer
    cached = 8 * 1010
    one_device = 2 * (2 * 4096 * 4096 / 8 + 2 * 4096 * 128 + 4096 + 2 * 128 * cached)
    memory = memory_costs(LLAMA_8B, "gqa2", eight, 8)
    assert memory["memory_mib"] == pytest.approx(8 * one_device / MIB)
    assert memory["params"] == 2 * 4096 * 4096 + 2 * 4096 * 256 + 4096


@pytest.mark.parametrize(
    ("name", "device", "complaint"),
    [
        ("gqa8", "h100x3", "32 query heads"),
        ("ffn14336", "h100x64", "32 query heads"),
        ("ffn100", "h100x8", "an FFN of width 100"),
    ],
)
def test_what_does_not_divide_is_refused(name: str, device: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"{complaint} cannot be divided among"):
        roofline_costs(LLAMA_8B, [name], scenario(device))


def test_constants_are_found_again_from_synthetic_points() -> None:
    device, drawn = find_device("h100x8"), random.Random(0)
    true = Constants(
        flops_efficiency=0.62, bandwidth_efficiency=0.81, launch_s=4e-6, all_reduce_s=2.1e-5
    )
    points = []
    for _ in range(24):
        works = [
            DeviceWork(
                10 ** drawn.uniform(9, 13),
                10 ** drawn.uniform(7, 10),
                drawn.randint(10, 400),
                drawn.randint(0, 100),
                10 ** drawn.uniform(5, 8),
            )
            for _ in range(3)
        ]
        points.append(TimedWork(works, sum(seconds(w, device, "bf16", true) for w in works)))
    found = fit_roofline(points, device, "bf16")
    for name in ("flops_efficiency", "bandwidth_efficiency", "launch_s", "all_reduce_s"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-4)


def test_what_no_point_tells_of_keeps_its_estimate() -> None:
    works = [DeviceWork(1e12, 1e6, 10, 0, 0), DeviceWork(1e9, 1e9, 10, 0, 0)]
    true = Constants(
        flops_efficiency=0.5, bandwidth_efficiency=0.5, launch_s=5e-6, all_reduce_s=1.0
    )
    points = [TimedWork([w], seconds(w, H100, "bf16", true)) for w in works]
    assert fit_roofline(points, H100, "bf16").all_reduce_s == H100.all_reduce_latency_s


# The 253B child of Llama-3.1-405B (arXiv 2503.18908): how many FFNs have which width, as a multiple
# of 16384 * 2 / 3, and of how many FFNs each of the fused ones was made.
FFNS_253B = {
    **{0.4875: 1, 0.975: 1, 1.4625: 6, 1.95: 10},
    **{2.4375: 19, 2.925: 2, 3.4125: 4, 4.875: 34},
}
FUSED_253B = {36.5625: 8, 39.0: 12, 31.40625: 15, 27.5625: 14}


def tokens_per_s(num_attentions: int, ffns: dict[int, int]) -> float:
    config = ModelConfig.uniform(
        num_hidden_layers=1,
        num_key_value_heads=8,
        intermediate_size=53248,
        vocab_size=128256,
        hidden_size=16384,
        num_attention_heads=128,
        head_dim=128,
    )
    # 8-bit weights: at 16 bits the 405B could not read them in the time that was published.
    served = Scenario(batch=1, prompt_tokens=1024, output_tokens=1024, dtype="fp8", device="h100x8")
    names = ["gqa8", *(f"ffn{width}" for width in ffns)]
    fixed, costs = roofline_costs(config, names, served)
    total_ms = fixed["decode_ms"] + num_attentions * costs["gqa8"]["decode_ms"]
    total_ms += sum(n * costs[f"ffn{width}"]["decode_ms"] for width, n in ffns.items())
    return 1024 / (total_ms / 1e3)


def test_published_speeds_and_the_gain_of_fusion_are_foretold() -> None:
    def width(multiplier: float) -> int:
        return -(-int(2 * multiplier * 16384 / 3) // 256) * 256

    alone = {width(m): n for m, n in FFNS_253B.items()}
    members = {-(-width(m) // n // 256) * 256: n for m, n in FUSED_253B.items()}
    unfused = dict(alone)
    for wide, n in members.items():
        unfused[wide] = unfused.get(wide, 0) + n
    fused = alone | {width(m): 1 for m in FUSED_253B}
    speeds = [
        tokens_per_s(126, {53248: 126}),
        tokens_per_s(64, unfused),
        tokens_per_s(64, fused),
    ]
    # 8 H100 in tensor parallel, one request: 41.44, 63.38 (1.53x) and 70.92 (1.71x) tokens/s.
    assert speeds == pytest.approx([41.44, 63.38, 70.92], rel=0.15)
    assert [speed / speeds[0] for speed in speeds[1:]] == pytest.approx([1.53, 1.71], rel=0.05)
