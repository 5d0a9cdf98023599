"""Scenarios and targets: read, printed, refused, and turned into limits."""

import pytest

from fretsaw.scenario.scenario import Scenario, parse_scenarios
from fretsaw.scenario.target import Target, limits, parse_targets

TEXT = "batch=64,in=1024,out=512,dtype=bf16,device=h100"


def test_a_scenario_prints_as_it_is_written():
    scenario = Scenario.parse(TEXT)
    assert scenario == Scenario(batch=64, prompt_tokens=1024, output_tokens=512)
    assert str(scenario) == TEXT
    assert Scenario.parse(" out=512, batch = 64 ") == scenario
    assert Scenario.parse(str(Scenario.parse("device=h100x8"))).device == "h100x8"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("bach=3", "did you mean 'batch'"),
        ("batch=0", "at least 1"),
        ("batch=many", "no whole number"),
        ("batch", "no value"),
        ("batch=1,batch=2", "given twice"),
        ("dtype=bf8", "use fp32, bf16"),
        ("device=my gpu", "one word"),
    ],
)
def test_scenarios_that_are_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        Scenario.parse(text)


PARENT = {"decode_ms": 900.0, "prefill_ms": 300.0, "memory_mib": 20_000.0, "params": 8e9}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5x decode", {"decode_ms": 600.0}),
        ("2x prefill", {"prefill_ms": 150.0}),
        ("1.2x throughput", {"prefill_ms+decode_ms": 1000.0}),
        ("800ms latency", {"prefill_ms+decode_ms": 800.0}),
        ("60% memory", {"memory_mib": 12_000.0}),
        ("0.7x params", {"params": 5.6e9}),
        ("70 % params", {"params": 5.6e9}),
        ("12GiB", {"memory_mib": 12_288.0}),
        ("24GB", {"memory_mib": 24e9 / 2**20}),
        ("24gb memory", {"memory_mib": 24e9 / 2**20}),
        ("1.5x decode, 60% memory", {"decode_ms": 600.0, "memory_mib": 12_000.0}),
        ("1.5x decode,3x decode,2x decode", {"decode_ms": 300.0}),
    ],
)
def test_targets_become_limits(text, expected):
    assert limits(parse_targets(text), PARENT) == pytest.approx(expected)


def test_targets_print_as_they_were_written():
    assert [str(target) for target in parse_targets("1.50x decode, 24GB")] == [
        "1.50x decode",
        "24GB",
    ]


@pytest.mark.parametrize(
    "text",
    ["1x decode", "0.5x prefill", "120% memory", "100% memory", "1.2x params", "0% memory", "fast",
     "", "1.5x", "1.5x decode,", "60%", "800ms", "800ms decode", "50% decode", "-2x decode",
     "0GB", "24GB params", "2x latency", "nanx decode"],
)  # fmt: skip
def test_refused_targets_give_the_grammar(text):
    with pytest.raises(ValueError, match=r"target: .*write '1\.5x decode'"):
        parse_targets(text)


def test_a_target_on_an_unmeasured_cost_is_refused():
    with pytest.raises(ValueError, match="needs the parent's prefill_ms"):
        limits(parse_targets("1.2x throughput"), {"decode_ms": 900.0})


def test_a_target_may_name_its_scenario():
    target = Target.parse("1.5x decode @ batch=64 in=1024")
    assert (target.quantity, target.at) == ("decode", "batch=64,in=1024")
    assert parse_targets(str(target)) == (target,)
    assert Scenario(batch=64, output_tokens=7).agrees(target.at)
    assert not Scenario(batch=32).agrees(target.at)
    for text, why in (("2x decode @ bach=1", "did you mean 'batch'"), ("2x decode @", "names no")):
        with pytest.raises(ValueError, match=why):
            Target.parse(text)
    with pytest.raises(ValueError, match="names a scenario"):
        limits([target], {"decode_ms": 1.0})


@pytest.mark.parametrize(
    ("text", "cost", "words"),
    [
        ("3x decode", 52.0, "1.92x decode"),  # 100 / 52 = 1.923, rounded down
        ("10% memory", 57.31, "57.4% memory"),  # rounded up
        ("0.1x params", 57.3, "57.3% params"),
        ("5ms latency", 7.2, "8ms latency"),
        ("1GiB", 1536.0, "1.5GiB"),
        ("1GB", 1536.0, "1.62GB"),  # 1536 MiB = 1.6106 GB, rounded up
    ],
)
def test_what_is_reachable_is_said_as_a_target_that_can_be_met(text, cost, words):
    target = Target.parse(text)
    assert target.reachable(cost, 100.0) == words
    assert Target.parse(words).bound(100.0) >= cost


def test_slashes_stand_for_every_combination() -> None:
    found = parse_scenarios("batch=1/8, in=64,out=32/64,dtype=fp32,device=cpu")
    assert [str(scenario) for scenario in found] == [
        "batch=1,in=64,out=32,dtype=fp32,device=cpu",
        "batch=1,in=64,out=64,dtype=fp32,device=cpu",
        "batch=8,in=64,out=32,dtype=fp32,device=cpu",
        "batch=8,in=64,out=64,dtype=fp32,device=cpu",
    ]
    assert parse_scenarios("batch=4") == (Scenario(batch=4),)
    for wrong in ("batch=1/", "batch=1/x", "dtype=fp32/bf16"):
        with pytest.raises(ValueError, match="scenario:"):
            parse_scenarios(wrong)


def test_a_context_that_is_too_short() -> None:
    Scenario(prompt_tokens=60, output_tokens=40).check_context(100)
    with pytest.raises(ValueError, match="101 tokens a row, but the model's context is 100"):
        Scenario(prompt_tokens=60, output_tokens=41).check_context(100)
