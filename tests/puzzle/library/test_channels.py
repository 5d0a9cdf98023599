"""The orders of FFN channels against what they claim: brute force over what is dropped."""

import numpy as np
import pytest
import torch

from fretsaw.puzzle.library.channels import (
    contribution_order,
    iterative_order,
    repaired_order,
)


def activations(channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator)
    return (torch.randn(500, channels, generator=generator) @ mix).double()


def error_of(kept: list[int], x: torch.Tensor, weight: torch.Tensor, *, refit: bool) -> float:
    """Return the squared error of an FFN of these channels alone."""
    wanted = x @ weight.T
    if not refit:
        return (wanted - x[:, kept] @ weight[:, kept].T).square().sum().item()
    ridge = 1e-4 * (x.T @ x).diagonal().mean().item()
    # the ridge is centred on the weights, dropped ones included, as the inverse has it
    a = np.vstack([x[:, kept].numpy(), np.sqrt(ridge) * np.eye(x.shape[1])[:, kept]])
    b = np.vstack([wanted.numpy(), np.sqrt(ridge) * weight.T.numpy()])
    solution = np.linalg.lstsq(a, b, rcond=None)[0]
    return float(np.square(b - a @ solution).sum())


def greedy(x: torch.Tensor, weight: torch.Tensor, *, refit: bool) -> list[int]:
    """Drop, one after another, the channel whose loss leaves the least error."""
    kept, dropped = list(range(x.shape[1])), []
    while kept:
        errors = {i: error_of([k for k in kept if k != i], x, weight, refit=refit) for i in kept}
        dropped.append(min(errors, key=lambda i: errors[i]))
        kept.remove(dropped[-1])
    return dropped[::-1]


def one_by_one(
    gram: torch.Tensor, weight: torch.Tensor, ridge: float = 1e-4
) -> tuple[list[int], list[torch.Tensor]]:
    """Return the order by plain rank-one updates, and the costs that each choice was made by."""
    gram, weight = gram.double(), weight.double().clone()
    inverse = torch.linalg.inv(
        gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)).double()
    )
    alive = torch.ones(len(gram), dtype=torch.bool)
    dropped, costs = [], []
    while alive.any():
        cost = (weight.square().sum(0) / inverse.diagonal()).where(alive, torch.inf)
        i = int(cost.argmin())
        dropped.append(i)
        costs.append(cost)
        alive[i] = False
        pivot = inverse[i] / inverse[i, i]
        weight -= weight[:, i, None] * pivot
        inverse -= inverse[:, i, None] * pivot
        inverse[i, i] = 1.0
    return dropped[::-1], costs[::-1]


def hostile(kind: str, size: int) -> torch.Tensor:
    """Return activations of a kind that strains the arithmetic."""
    x = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(5)).double()
    scales = torch.linspace(0, 1, size).double()
    match kind:
        case "steep":
            return x * 10.0 ** (-6 * scales)
        case "few rows":
            return x[: size // 3]
        case "copies":
            x[:, ::2] = x[:, 1::2]
        case "dead":
            x[:, ::3] = 0
        case "one loud":
            x[:, 7] *= 1e6
        case "alike":
            x = x[:, :1] + 1e-3 * x
        case "float32":
            return (x * (1 + 9 * scales)).float()
        case "low rank":
            x = x[:, :5] @ x[:5]
        case "negated":
            x[:, ::2] = -x[:, 1::2]
        case "tiny":
            x *= 1e-15
    return x


KINDS = "steep, few rows, copies, dead, one loud, alike, float32, low rank, negated, tiny"


@pytest.mark.parametrize("kind", KINDS.split(", "))
def test_blocks_of_updates_choose_as_one_by_one(kind: str) -> None:
    """Every choice costs the least there is, but for rounding: ties may come out otherwise."""
    size = 150
    x = hostile(kind, size)
    weight = torch.randn(40, size, generator=torch.Generator().manual_seed(6))
    order = repaired_order(x.mT @ x, weight).tolist()
    assert sorted(order) == list(range(size))
    expected, costs = one_by_one(x.mT @ x, weight)
    for place in range(size - 1, -1, -1):
        if order[place] != expected[place]:
            cost, least = (costs[place][channels[place]].item() for channels in (order, expected))
            assert cost == pytest.approx(least, rel=1e-6), f"{kind}: {size - place} dropped"
            assert kind in ("copies", "dead", "low rank", "negated", "few rows"), "no ties there"
            break  # from a tie on, both are right in their own way
    else:
        assert order == expected


def test_contribution_is_activation_times_weight() -> None:
    weight = torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 4.0]])  # norms 1, 2, 5
    order = contribution_order(torch.tensor([9.0, 2.0, 1.0]), weight)  # 9, 4, 5
    assert order.tolist() == [0, 2, 1]


def test_the_iterative_order_is_greedy_by_what_is_lost() -> None:
    x = activations(7)
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(1)).double()
    assert iterative_order(x.T @ x, weight).tolist() == greedy(x, weight, refit=False)


def test_the_repaired_order_is_greedy_with_the_rest_refitted() -> None:
    for seed in range(3):
        x = activations(7, seed)
        weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)).double()
        order = repaired_order(x.T @ x, weight).tolist()
        expected = greedy(x, weight, refit=True)
        # the last few span what is left exactly: any order of those is as good
        assert order[3:] == expected[3:]
        assert sorted(order) == list(range(7))


def test_a_copy_is_dropped_first_where_the_rest_makes_up_for_it() -> None:
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)).double()
    x[:, 3] = x[:, 0]  # a copy: dropping it costs nothing once channel 0 takes over
    weight = torch.full((2, 4), 1.0).double()
    assert set(repaired_order(x.T @ x, weight)[-1:].tolist()) <= {0, 3}
    assert len(iterative_order(x.T @ x, weight)) == 4


def test_dead_channels_keep_their_places() -> None:
    assert repaired_order(torch.zeros(3, 3), torch.ones(2, 3)).tolist() == [0, 1, 2]
