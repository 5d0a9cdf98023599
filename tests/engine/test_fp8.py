"""FP8 matrices: the quantisation itself, and an engine that decodes with them."""

import torch
from engines import make_decoder

from fretsaw.engine.engine import Engine
from fretsaw.engine.fp8 import FP8_MAX, Fp8Matrix, product, quantise_rows
from fretsaw.engine.sequence import Request


def random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_every_row_uses_the_whole_range() -> None:
    x = random(6, 64) * torch.tensor([1e-6, 1e-3, 1.0, 10.0, 1e3, 1e6])[:, None]
    values, scales = quantise_rows(x)
    assert values.float().abs().amax(-1).tolist() == [FP8_MAX] * 6
    # Three bits of mantissa: at most half of 1/8 off, below the smallest normal number half a step.
    error = (values.float() * scales - x).abs()
    assert (error <= x.abs() / 16 + scales * 2.0**-10).all()


def test_zeros_stay_zeros() -> None:
    values, scales = quantise_rows(torch.zeros(2, 8))
    assert torch.equal(values.float() * scales, torch.zeros(2, 8))


def test_a_product_is_that_of_the_quantised_sides() -> None:
    x, weight = random(5, 64), random(12, 64, seed=1)
    values, scales = quantise_rows(weight)
    tokens, token_scales = quantise_rows(x)
    expected = (tokens.float() * token_scales) @ (values.float() * scales).t()
    torch.testing.assert_close(product(x, values, scales), expected)


def test_a_matrix_of_several_keeps_each_rows_scale() -> None:
    x, small, large = random(3, 64), random(4, 64, seed=1), 1e3 * random(4, 64, seed=2)
    both = Fp8Matrix(small, large)(x)
    torch.testing.assert_close(both[:, :4], Fp8Matrix(small)(x))
    torch.testing.assert_close(both[:, 4:], Fp8Matrix(large)(x))


def test_the_engine_decodes_with_fp8_weights() -> None:
    decoder = make_decoder("mixed")
    ids = [(7 * i) % 50 for i in range(60)]
    exact, rounded = (torch.tensor(Engine(decoder, fp8=f).logprobs(ids)) for f in (False, True))
    assert 1e-4 < (exact - rounded).abs().mean() < 0.2
    events = list(Engine(decoder, fp8=True).generate([Request((1, 2, 3), 10)]))
    assert len(events) == 10
