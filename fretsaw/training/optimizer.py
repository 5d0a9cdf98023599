"""The optimizers: AdamW for all, or Muon for the blocks' matrices with AdamW beside it."""

from typing import Literal

import torch
from torch import nn

OptimizerName = Literal["adamw", "muon"]


def build_optimizers(
    model: nn.Module,
    name: OptimizerName,
    *,
    learning_rate: float,
    muon_learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> list[torch.optim.Optimizer]:
    """Return AdamW (arXiv 1711.05101), or Muon for the blocks' matrices and AdamW for the rest.

    Muon orthogonalises the momentum of a matrix by a Newton-Schulz iteration (K. Jordan, 2024); it
    needs far fewer tokens from random weights. Embeddings, head and norms stay with AdamW;
    norms are never decayed.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    by_muon = [p for n, p in named if name == "muon" and p.ndim == 2 and ".layers." in n]
    taken = set(map(id, by_muon))
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
    if not by_muon:
        return [adamw]
    return [torch.optim.Muon(by_muon, lr=muon_learning_rate, weight_decay=weight_decay), adamw]


def scale_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's rate to its peak times `factor`; the peak is remembered in the group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("peak_lr", group["lr"])
            group["lr"] = group["peak_lr"] * factor
