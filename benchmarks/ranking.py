"""The refitted channel order: blocks of updates against one update after another.

    python benchmarks/ranking.py [--widths 384 1536]

Both are given the same random activations, in one run; printed are seconds of one thread, their
ratio, and whether the orders are equal.
"""

import argparse
import time

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.puzzle.library.channels import repaired_order


def one_by_one(
    gram: Float[Tensor, "ffn ffn"], weight: Float[Tensor, "hidden ffn"], ridge: float = 1e-4
) -> Int[Tensor, " ffn"]:
    """Return the order by rank-one updates of whole matrices."""
    size = len(gram)
    inverse = torch.linalg.inv(gram + ridge * gram.diagonal().mean() * torch.eye(size).to(gram))
    weight, alive, dropped = weight.clone(), torch.ones(size, dtype=torch.bool), []
    for _ in range(size):
        cost = weight.square().sum(0) / inverse.diagonal()
        i = int(cost.where(alive, torch.inf).argmin())
        dropped.append(i)
        alive[i] = False
        pivot = inverse[i] / inverse[i, i]
        weight -= weight[:, i, None] * pivot
        inverse -= inverse[:, i, None] * pivot
        inverse[i, i] = 1.0
    return torch.tensor(dropped[::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 1536])
    torch.set_num_threads(1)
    for width in parser.parse_args().widths:
        torch.manual_seed(0)
        scales = torch.rand(width) ** 2
        x = (torch.randn(4 * width, width) @ torch.randn(width, width) * scales).double()
        gram, weight = x.mT @ x, torch.randn(width * 3 // 8, width).double()
        seconds, orders = [], []
        for order in (repaired_order, one_by_one):
            started = time.process_time()
            orders.append(order(gram, weight))
            seconds.append(time.process_time() - started)
        print(
            f"{width} channels: {seconds[0]:.2f} s, one by one {seconds[1]:.2f} s, "
            f"{seconds[1] / seconds[0]:.1f}x, orders equal: {torch.equal(*orders)}"
        )


if __name__ == "__main__":
    main()
