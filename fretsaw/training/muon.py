"""Muon (K. Jordan, 2024) for matrices that may be split over processes.

The iteration needs the whole matrix: a split momentum is gathered, orthogonalised by every process
alike, and each takes its own part of the update. Otherwise it is `torch.optim.Muon`, which takes
split matrices too, but adds up products of their parts in bf16. On a CPU the iteration is done in
float32: in bf16 a last bit of the gradient, which depends on how a batch is cut, becomes 0.4 % of
an element of the update, and losses part after a few steps.
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
MOMENTUM = 0.95


def orthogonalise(
    matrix: Float[Tensor, "rows columns"], dtype: torch.dtype
) -> Float[Tensor, "rows columns"]:
    """Return about U V^T of the matrix's U S V^T: its singular values are brought near 1.

    Newton-Schulz, X <- a X + (b X X^T + c (X X^T)^2) X, five times from X / |X|.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, Nesterov's look ahead, orthogonalised; the rate grows with sqrt(rows / columns)."""

    def __init__(self, matrices: Iterable[nn.Parameter], *, lr: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                update = _orthogonalised(matrix.grad.lerp(momentum, MOMENTUM))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
                matrix.add_(update, alpha=-rate)


def _orthogonalised(matrix: Tensor) -> Tensor:
    dtype = torch.float32 if matrix.device.type == "cpu" else torch.bfloat16
    if not isinstance(matrix, DTensor):
        return orthogonalise(matrix, dtype)
    # Every process has the whole result: it takes its part without asking the others.
    return distribute_tensor(
        orthogonalise(matrix.full_tensor(), dtype),
        matrix.device_mesh,
        matrix.placements,
        src_data_rank=None,
    )
