"""Lean AdamW: in fp32 it is torch's, rounded it is so on average; its state comes back whole."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fretsaw.training import low_precision
from fretsaw.training.low_precision import (
    LeanAdamW,
    load_first,
    load_second,
    round_to_bf16,
    store_first,
    store_second,
)
from fretsaw.training.optimizer import apply_gradients, build_optimizers
from fretsaw.training.settings import UpdateSettings


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(100, 90), nn.Tanh(), nn.Linear(90, 8)).to(dtype)


def trained(
    net: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(12)
) -> torch.Tensor:
    """Take steps towards a fixed map; return all weights, end to end."""
    x = torch.randn(64, 100, generator=generator(2))
    target = torch.tanh(x[:, :8] * 2)
    for step in steps:
        rows = slice(16 * (step % 4), 16 * (step % 4) + 16)
        loss = (net(x[rows].to(next(net.parameters()).dtype)).float() - target[rows]).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([p.detach().float().flatten() for p in net.parameters()])


def lean(net: nn.Module, **settings: Any) -> LeanAdamW:
    groups = [{"params": list(net.parameters()), "weight_decay": 0.1}]
    return LeanAdamW(groups, lr=1e-2, betas=(0.9, 0.95), **{"states": "fp32", **settings})


def test_in_fp32_it_is_torchs_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_precision, "SLICE", 250)  # two rows at once
    ours, theirs = network(), network()
    adamw = torch.optim.AdamW(
        theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, foreach=False
    )
    torch.testing.assert_close(
        trained(ours, lean(ours)), trained(theirs, adamw), rtol=1e-5, atol=1e-6
    )


def test_bf16_rounding_takes_a_neighbour_and_is_right_on_average() -> None:
    # Between 1 and 1 + 2^-7, a quarter of the way: up a quarter of the times.
    x = torch.full((40_000,), 1 + 2**-9)
    rounded = round_to_bf16(x, generator()).float()
    assert set(rounded.tolist()) == {1.0, 1 + 2**-7}
    share = (rounded > 1).float().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 40_000) ** 0.5
    exact = torch.tensor([0.0, -1.5, 2.0**-100, -(2.0**90)])
    assert torch.equal(round_to_bf16(exact, generator()).float(), exact)


def test_every_pattern_of_the_upper_half_is_rounded_to_its_kind() -> None:
    """All 65,536 upper halves, with the lower halves at which carries are made or not."""
    upper = torch.arange(1 << 16, dtype=torch.int64) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
        bits = upper | lower
        x = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).int().view(torch.float32)
        rounded = round_to_bf16(x, generator(lower)).float()
        assert torch.equal(rounded.isnan(), x.isnan())
        assert torch.equal(rounded.isinf(), x.isinf())
        finite = x.isfinite()
        assert torch.equal(rounded[finite].signbit(), x[finite].signbit())
        assert torch.equal(rounded[x.isinf()], x[x.isinf()])
        if lower == 0:
            assert torch.equal(rounded[finite], x[finite])


def test_a_moment_that_is_not_a_number_stays_none_in_8_bits() -> None:
    for store, load in ((store_first, load_first), (store_second, load_second)):
        for value in (float("nan"), float("inf")):
            x = torch.ones(2, 300)
            x[0, 140] = value
            back = load(*store(x, generator()))
            assert not back[0, 140].isfinite()
            assert back[1].isfinite().all()
        zeros = torch.zeros(2, 300)
        assert torch.equal(load(*store(zeros, generator())), zeros)


@pytest.mark.parametrize(
    ("store", "load", "power", "levels"),
    [(store_first, load_first, 2, 127), (store_second, load_second, 4, 255)],
)
def test_8_bit_moments_are_right_on_average(store: Any, load: Any, power: int, levels: int) -> None:
    values = torch.logspace(-6, 0, 200)[None]  # two blocks, the second not full
    scale = torch.cat([values[:, 127:128].expand(1, 128), values[:, -1:].expand(1, 72)], -1)
    below = ((values / scale) ** (1 / power) * levels).floor()
    gap = scale * (((below + 1) / levels) ** power - (below / levels) ** power)
    draws = torch.stack([load(*store(values, generator(seed))) for seed in range(1000)])
    # The deviation of a draw is at most half the gap between the two codes.
    assert ((draws.mean(0) - values).abs() <= 5 * gap / 2 / 1000**0.5 + 1e-6 * values).all()
    assert ((draws - values).abs() <= gap * 1.001).all()
    assert torch.equal(load(*store(torch.zeros(2, 200), generator())), torch.zeros(2, 200))


def test_a_sign_is_kept() -> None:
    m = torch.linspace(-1, 1, 128)[None]
    kept = load_first(*store_first(m, generator()))
    assert ((kept.sign() == m.sign()) | (kept == 0)).all()
    assert kept[0, 0] == -1


def test_a_positive_second_moment_never_becomes_zero() -> None:
    v = torch.full((1, 128), 1e-20)
    v[0, 0] = 1.0
    assert load_second(*store_second(v, generator())).min() > 0


@pytest.mark.parametrize("states", ["bf16", "int8"])
def test_saved_and_loaded_it_goes_on_bitwise(states: str) -> None:
    whole_net = network(torch.bfloat16)
    whole = trained(whole_net, lean(whole_net, states=states, seed=3), range(12))
    net = network(torch.bfloat16)
    first = lean(net, states=states, seed=3)
    trained(net, first, range(5))
    saved = copy.deepcopy(first.state_dict())
    assert {t.dtype for s in saved["state"].values() for t in s.values() if torch.is_tensor(t)} > {
        torch.bfloat16 if states == "bf16" else torch.int8
    }
    second = lean(net, states=states)  # its seed is in the state
    second.load_state_dict(saved)
    assert torch.equal(trained(net, second, range(5, 12)), whole)
    other = network(torch.bfloat16)
    assert not torch.equal(trained(other, lean(other, states=states, seed=4), range(12)), whole)


def test_offloaded_it_computes_the_same() -> None:
    here, there = network(), network()
    a = trained(here, lean(here, states="int8"))
    offloaded = lean(there, states="int8", offload=True)
    assert torch.equal(a, trained(there, offloaded))
    devices = [t.device.type for s in offloaded.state.values() for t in s.values()
               if torch.is_tensor(t)]  # fmt: skip
    assert set(devices) == {"cpu"}


def test_moments_take_the_bytes_they_are_said_to() -> None:
    net = nn.Linear(256, 256, bias=False)
    sizes = {}
    for states in ("fp32", "bf16", "int8"):
        optimizer = lean(net, states=states)
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step()
        tensors = [t for t in optimizer.state[net.weight].values() if torch.is_tensor(t)]
        sizes[states] = sum(t.nbytes for t in tensors) / net.weight.numel()
    assert sizes == {"fp32": 8, "bf16": 4, "int8": 2 + 2 * 4 / 128}


def test_the_settings_choose_it() -> None:
    settings = UpdateSettings(states="int8", master="bf16")
    net = network()
    optimizers = build_optimizers(net, settings, seed=5)
    assert [type(one) for one in optimizers] == [LeanAdamW]
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    net(torch.ones(1, 100).bfloat16()).sum().backward()
    metrics = apply_gradients(net, optimizers, settings, step=0, num_steps=10)
    assert metrics["grad_norm"] > 0
    with pytest.raises(ValueError, match="take adamw"):
        UpdateSettings(optimizer="muon", offload=True)
