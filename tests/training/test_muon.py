"""Muon: the update of torch's own; singular values near 1."""

import pytest
import torch
from torch import nn

from fretsaw.training.muon import Muon, orthogonalise

SHAPES = [(16, 16), (48, 16), (16, 40)]


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7
    values = torch.linalg.svdvals(orthogonalise(matrix, torch.float32))
    assert values.max() < 1.3
    assert values[: 3 * len(values) // 4].min() > 0.6


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_that_of_torch(shape: tuple[int, int]) -> None:
    """Three steps against torch.optim.Muon, which multiplies in bf16: two digits agree."""
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    mine = Muon([ours], lr=0.1, weight_decay=0.2)
    other = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2)
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1 * 3 * 0.02)
    momenta = (o.state[p]["momentum_buffer"] for o, p in ((mine, ours), (other, theirs)))
    torch.testing.assert_close(*momenta, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bf16_it_is_torch_bit_for_bit(shape: tuple[int, int]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    theirs = nn.Parameter(torch.zeros(shape))
    theirs.grad = gradient.clone()
    rate = max(1, shape[0] / shape[1]) ** 0.5
    torch.optim.Muon([theirs], lr=1 / rate, weight_decay=0.0).step()
    momentum = torch.zeros(shape).lerp_(gradient, 1 - 0.95)
    ours = orthogonalise(gradient.lerp(momentum, 0.95), torch.bfloat16).float()
    torch.testing.assert_close(-theirs.detach(), ours, rtol=1e-6, atol=0)
