"""The optimizers: AdamW for all, or Muon for the blocks' matrices with AdamW beside it."""

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from fretsaw.training.muon import Muon
from fretsaw.training.schedule import warmup_cosine
from fretsaw.training.settings import UpdateSettings


def build_optimizers(model: nn.Module, settings: UpdateSettings) -> list[torch.optim.Optimizer]:
    """Return AdamW (arXiv 1711.05101), or Muon for the blocks' matrices and AdamW for the rest.

    Muon orthogonalises the momentum of a matrix by a Newton-Schulz iteration (K. Jordan, 2024); it
    needs far fewer tokens from random weights. Embeddings, head and norms stay with AdamW;
    norms are never decayed.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    is_muon = settings.optimizer == "muon"
    by_muon = [p for n, p in named if is_muon and p.ndim == 2 and ".layers." in n]
    taken = set(map(id, by_muon))
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)
    if not by_muon:
        return [adamw]
    muon = Muon(by_muon, lr=settings.muon_learning_rate, weight_decay=settings.weight_decay)
    return [muon, adamw]


def apply_gradients(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    settings: UpdateSettings,
    *,
    step: int,
    num_steps: int,
) -> dict[str, float]:
    """Clip the gradient, step the optimizers at this step's rate, and clear the gradient.

    Where nothing has a gradient nothing is changed: momentum does not move what was not asked.
    """
    factor = warmup_cosine(
        step,
        num_steps=num_steps,
        num_warmup=settings.num_warmup(num_steps),
        min_ratio=settings.min_lr_ratio,
    )
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
    norm = (total.full_tensor() if isinstance(total, DTensor) else total).item()
    if not math.isfinite(norm):
        raise ValueError(
            f"step {step}: the gradient is {norm}; lower learning_rate {settings.learning_rate} "
            "or check the data"
        )
    for optimizer in optimizers if norm > 0 else ():
        for group in optimizer.param_groups:
            group.setdefault("peak_lr", group["lr"])
            group["lr"] = group["peak_lr"] * factor
        optimizer.step()
    for optimizer in optimizers:
        optimizer.zero_grad()
    return {"lr": settings.learning_rate * factor, "grad_norm": norm}
