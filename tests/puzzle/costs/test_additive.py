"""Times taken apart exactly, in order of size, whatever the machine does meanwhile."""

import pytest

from fretsaw.model.config import BlockConfig
from fretsaw.puzzle.costs.additive import (
    fit_additive,
    left_out_errors,
    predict,
    round_medians,
)

COSTS = {"fixed": 3.0, "gqa4": 2.0, "gqa2": 1.5, "ffn64": 4.0, "ffn16": 1.0}


def stack(*names: str) -> list[BlockConfig]:
    return [BlockConfig.from_names(*name.split("/")) for name in names]


MODELS = {
    "x2": stack("gqa4/ffn64", "gqa4/ffn64"),
    "x1": stack("gqa4/ffn64"),
    "narrow": stack("gqa4/ffn16"),
    "fewer": stack("gqa2/ffn64"),
    "bare": stack("attn_none/ffn64"),
    "child 0": stack("gqa2/ffn16", "attn_none/ffn64", "gqa4/ffn_none"),
}


def times() -> dict[str, float]:
    return {name: predict(COSTS, blocks) for name, blocks in MODELS.items()}


def test_predictions_are_sums() -> None:
    # 3 fixed; gqa2 1.5 + ffn16 1; nothing + ffn64 4; gqa4 2 + nothing
    assert times()["child 0"] == 3 + 1.5 + 1 + 4 + 2


def test_additive_times_are_taken_apart_exactly() -> None:
    assert fit_additive(MODELS, times(), ["child 0"]) == pytest.approx(COSTS)
    errors = left_out_errors(MODELS, times(), ["child 0"], ["child 0"])
    assert errors == {"child 0": pytest.approx(0, abs=1e-9)}


def test_costs_are_never_negative_nor_fall_with_size() -> None:
    noisy = times()
    noisy["narrow"] = 0.5  # the narrow FFN would cost less than nothing
    assert min(fit_additive(MODELS, noisy).values()) >= 0
    noisy = times()
    noisy["fewer"] = 12.0  # fewer key-value heads would cost more
    costs = fit_additive(MODELS, noisy)
    assert costs["gqa2"] <= costs["gqa4"]


def test_whole_models_weigh_more() -> None:
    off = {**times(), "child 0": 2 * times()["child 0"]}
    errors = [
        abs(predict(fit_additive(MODELS, off, whole), MODELS["child 0"]) / off["child 0"] - 1)
        for whole in ([], ["child 0"])
    ]
    assert errors[1] < errors[0]


def test_a_slow_round_changes_nothing() -> None:
    quiet = {"a": [2.0] * 3, "b": [6.0] * 3}
    slow = {name: [a, 5 * b, c] for name, (a, b, c) in quiet.items()}
    assert round_medians(slow) == round_medians(quiet)
    assert round_medians(quiet) == ({"a": 2.0, "b": 6.0}, {"a": 0.0, "b": 0.0})


def test_noise_is_the_median_distance_from_the_median() -> None:
    rounds = {"a": [9.0, 10.0, 12.0, 10.0, 8.0]}
    medians, noise = round_medians(rounds, is_interleaved=False)
    assert medians == {"a": 10.0}
    assert noise == {"a": pytest.approx(0.1)}  # of 0, 0, 0.1, 0.2, 0.2


def test_a_wider_ffn_costs_no_less_in_8_bits_either() -> None:
    models = {f"{w}": stack(*[f"gqa4/ffn{w}@int8"] * 2) for w in (16, 64, 128)}
    models |= {"x1": stack("gqa4/ffn64"), "x2": stack("gqa4/ffn64", "gqa4/ffn64")}
    noisy = {"x1": 9.0, "x2": 15.0, "16": 11.0, "64": 10.0, "128": 13.0}
    costs = fit_additive(models, noisy)
    assert costs["ffn16@int8"] <= costs["ffn64@int8"] <= costs["ffn128@int8"]
    assert costs["ffn64@int8"] != costs["ffn64"], "a precision is a kind of its own"
