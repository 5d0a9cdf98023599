"""Matrices in 8 bits: the rounding, the product, and networks made of them."""

from dataclasses import replace

import pytest
import torch
from engines import ask, make_decoder

from fretsaw.engine.engine import Engine
from fretsaw.engine.weights import FloatCodesMatrix, QuantisedMatrix, matrix_in_8_bits
from fretsaw.model import linear
from fretsaw.model.kinds import Precision
from fretsaw.model.linear import LARGEST, dequantise, product, quantise_rows
from fretsaw.model.quantised import everywhere, full_weights, quantised
from fretsaw.model.size import block_bytes

PRECISIONS: tuple[Precision, ...] = ("fp8", "int8")


def random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_row_uses_the_whole_range(precision: Precision) -> None:
    x = random(6, 64) * torch.tensor([1e-6, 1e-3, 1.0, 10.0, 1e3, 1e6])[:, None]
    codes, scales = quantise_rows(x, precision)
    assert codes.float().abs().amax(-1).tolist() == [LARGEST[precision]] * 6
    error = (dequantise(codes, scales) - x).abs()
    if precision == "int8":
        assert (error <= scales * 0.5001).all()
    else:  # 3 bits of mantissa: half of 1/8 off at most; below the smallest normal half a step
        assert (error <= x.abs() / 16 + scales * 2.0**-10).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros_stay_zeros(precision: Precision) -> None:
    assert torch.equal(dequantise(*quantise_rows(torch.zeros(2, 8), precision)), torch.zeros(2, 8))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_was_rounded_rounds_to_itself(precision: Precision) -> None:
    codes, scales = quantise_rows(random(40, 64), precision)
    again, scales_again = quantise_rows(dequantise(codes, scales), precision)
    assert torch.equal(again.float(), codes.float())
    torch.testing.assert_close(scales_again, scales, rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_a_product_is_that_of_the_rounded_sides(precision: Precision, rows: int) -> None:
    x, weight = random(rows, 64), random(24, 64, seed=1)
    codes, scales = quantise_rows(weight, precision)
    tokens = dequantise(*quantise_rows(x, precision))
    expected = tokens @ dequantise(codes, scales).t()
    torch.testing.assert_close(product(x, codes, scales), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_able", [True, False])
@pytest.mark.parametrize("rows", [1, 8, 128])
def test_int8_is_the_same_whatever_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, rows: int, is_able: bool
) -> None:
    """As integers or as floats: sums of integers are exact up to 2^24, then rounded to float32."""
    x, y = random(rows, 96), random(rows, 40, seed=2)
    codes, scales = quantise_rows(random(40, 96, seed=1), "int8")
    tokens, token_scales = quantise_rows(x, "int8")
    exact = (tokens.double() @ codes.double().t() * token_scales * scales.t()).float()
    monkeypatch.setattr(linear, "multiplies_int8", lambda: is_able)
    matrix = matrix_in_8_bits(codes, scales)
    assert isinstance(matrix, QuantisedMatrix if is_able else FloatCodesMatrix)
    for result in (product(x, codes, scales), matrix(x), matrix.add_to(y, x) - y):
        torch.testing.assert_close(result, exact, rtol=1e-5, atol=1e-5)
    half = matrix(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, product(x.bfloat16(), codes, scales), rtol=2**-7, atol=1e-3)


def test_the_engine_decodes_int8_as_floats_where_integers_are_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = make_decoder("mixed")
    stored = quantised(decoder, everywhere(decoder.config, "int8"))
    ids = [(7 * i) % 50 for i in range(60)]
    told = []
    for is_able in (True, False):
        monkeypatch.setattr(linear, "multiplies_int8", lambda is_able=is_able: is_able)
        told.append(torch.tensor(Engine(stored).logprobs(ids)))
    assert (told[0] - told[1]).abs().max() < 2e-2  # codes may flip where a value lies between two
    assert (told[0] - told[1]).abs().mean() < 1e-3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_in_8_bits_is_the_fake_quantised_one(precision: Precision) -> None:
    """Beside the same network with its inputs and weights rounded in floating point."""
    decoder = make_decoder("mixed")
    stored = quantised(decoder, everywhere(decoder.config, precision))
    ids = torch.tensor([[(7 * i) % 50 for i in range(40)]])

    def rounded(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        x = args[0]
        return (dequantise(*quantise_rows(x.flatten(0, -2), precision)).view(x.shape),)

    fake = make_decoder("mixed")
    for module in fake.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            with torch.no_grad():
                module.weight.copy_(dequantise(*quantise_rows(module.weight, precision)))
            module.register_forward_pre_hook(rounded)
    with torch.inference_mode():
        torch.testing.assert_close(stored(ids), fake(ids), rtol=1e-4, atol=1e-4)
        assert (stored(ids) - decoder(ids)).abs().max() > 1e-4


def test_a_precision_a_subblock_is_kept_by_the_rest() -> None:
    decoder = make_decoder("mixed")
    blocks = list(decoder.config.blocks)
    at = next(i for i, block in enumerate(blocks) if block.ffn == "swiglu")
    blocks[at] = replace(blocks[at], ffn_precision="int8")
    mixed = quantised(decoder, tuple(blocks))
    for i, (before, after) in enumerate(zip(decoder.model.layers, mixed.model.layers, strict=True)):
        weights = full_weights(after)  # type: ignore[arg-type]
        for name, weight in before.state_dict().items():
            is_rounded = i == at and name.startswith("mlp.")
            assert torch.equal(weights[name], weight) != is_rounded, (i, name)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bytes_are_those_that_are_held(precision: Precision) -> None:
    decoder = make_decoder("mixed")
    config = quantised(decoder, everywhere(decoder.config, precision)).config
    held = quantised(decoder, config.blocks)
    for block, module in zip(config.blocks, held.model.layers, strict=True):
        num_bytes = sum(w.numel() * w.itemsize for w in module.state_dict().values())
        assert block_bytes(config, block, "fp32").total == num_bytes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_engine_decodes_what_is_stored_in_8_bits(precision: Precision) -> None:
    decoder = make_decoder("mixed")
    stored = quantised(decoder, everywhere(decoder.config, precision))
    ids = [(7 * i) % 50 for i in range(60)]
    with torch.inference_mode():
        expected = stored(torch.tensor([ids]))[0, :-1].log_softmax(-1)
    taken = expected.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    logprobs = torch.tensor(Engine(stored).logprobs(ids))
    assert (logprobs - taken).abs().max() < 2e-2  # codes may flip where a value lies between two
    assert (logprobs - taken).abs().mean() < 1e-3
    events = list(Engine(stored).generate([ask((1, 2, 3), 10)]))
    assert len(events) == 10


def test_the_engine_casts_to_fp8_as_it_loads() -> None:
    decoder = make_decoder("mixed")
    ids = [(7 * i) % 50 for i in range(60)]
    exact, cast = (torch.tensor(Engine(decoder, fp8=f).logprobs(ids)) for f in (False, True))
    stored = quantised(decoder, everywhere(decoder.config, "fp8"))
    assert 1e-4 < (exact - cast).abs().mean() < 0.2
    assert torch.equal(torch.tensor(Engine(stored).logprobs(ids)), cast)
