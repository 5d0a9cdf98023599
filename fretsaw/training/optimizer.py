"""The optimizers: AdamW for all, or Muon for the blocks' matrices with AdamW beside it."""

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from fretsaw.training.low_precision import LeanAdamW
from fretsaw.training.muon import Muon
from fretsaw.training.schedule import warmup_then
from fretsaw.training.settings import UpdateSettings


def build_optimizers(
    model: nn.Module, settings: UpdateSettings, *, seed: int = 0
) -> list[torch.optim.Optimizer]:
    """Return AdamW (arXiv 1711.05101), or Muon for the blocks' matrices and AdamW for the rest.

    Muon orthogonalises the momentum of a matrix by a Newton-Schulz iteration (K. Jordan, 2024); it
    needs far fewer tokens from random weights. Embeddings, head and norms stay with AdamW;
    norms are never decayed. Where states, weights or their place are to be lean, AdamW is our own,
    and the model is cast to what `master` says.
    """
    if settings.master == "bf16":
        model.to(torch.bfloat16)
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
    if settings.is_lean:
        if any(isinstance(p, DTensor) for p in rest):
            raise ValueError(
                f"states {settings.states!r}, master {settings.master!r}, offload "
                f"{settings.offload!r}: lean states work in one process; start it without "
                "torchrun, or leave them as they are by default"
            )
        return [
            LeanAdamW(
                groups,
                lr=settings.learning_rate,
                betas=betas,
                states=settings.states,
                offload=settings.offload,
                seed=seed,
            )
        ]
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
    """Clip the gradient, step the optimizers at this step's rate, and clear the gradient."""
    norm = clip_gradient(model, settings)
    factor = rate_factor(settings, step=step, num_steps=num_steps)
    lr = take_step(optimizers, settings, norm, factor, step=step)
    return {"lr": lr, "grad_norm": norm}


def clip_gradient(model: nn.Module, settings: UpdateSettings) -> float:
    """Scale the gradient down to `grad_clip`; return the norm it had."""
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
    return (total.full_tensor() if isinstance(total, DTensor) else total).item()


def rate_factor(settings: UpdateSettings, *, step: int, num_steps: int) -> float:
    """Return the factor on the peak rates at a step of the whole run."""
    return warmup_then(
        settings.schedule,
        step,
        num_steps=num_steps,
        num_warmup=settings.num_warmup(num_steps),
        min_ratio=settings.min_lr_ratio,
    )


def take_step(
    optimizers: list[torch.optim.Optimizer],
    settings: UpdateSettings,
    norm: float,
    factor: float,
    *,
    step: int,
) -> float:
    """Step the optimizers at `factor` of their peak rates and clear the gradient; return the rate.

    Where nothing has a gradient nothing is changed: momentum does not move what was not asked.
    """
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
    clear_gradient(optimizers)
    return settings.learning_rate * factor


def clear_gradient(optimizers: list[torch.optim.Optimizer]) -> None:
    """Drop the gradients of all that is trained."""
    for optimizer in optimizers:
        optimizer.zero_grad()


def forget(optimizers: list[torch.optim.Optimizer]) -> None:
    """Make the optimizers fresh: their moments and step counts are gone, their rates stay."""
    for optimizer in optimizers:
        optimizer.state.clear()
