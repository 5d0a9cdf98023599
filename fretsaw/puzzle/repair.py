"""Closed-form repair: the best output matrix for a narrowed subblock is a least-squares problem.

With X the activations that enter `down_proj` (or `o_proj`) and R what the sliced subblock misses of
its target, the correction D of the sliced weight minimises |R - X D'|^2 + lambda |D|^2: a ridge
centred on the slice. One half of the calibration text fits every lambda, the other half chooses
among them, and no repair at all is always a candidate; so the chosen one is never worse there.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # lambda, as a fraction of the mean diagonal of X'X


@dataclass
class Moments:
    """Second moments of activations and of what is missing, summed over tokens in float64."""

    gram: Float[Tensor, "ffn ffn"]  # X'X
    cross: Float[Tensor, "hidden ffn"]  # R'X

    @classmethod
    def zeros(cls, width: int, hidden: int, device: torch.device) -> "Moments":
        """Return empty sums."""
        return cls(
            torch.zeros(width, width, dtype=torch.float64, device=device),
            torch.zeros(hidden, width, dtype=torch.float64, device=device),
        )

    def add(
        self, activations: Float[Tensor, "tokens ffn"], missing: Float[Tensor, "tokens hidden"]
    ) -> None:
        """Add a batch of tokens."""
        self.gram += (activations.mT @ activations).double()
        self.cross += (missing.mT @ activations).double()


@dataclass(frozen=True)
class Repair:
    """A correction of an output weight and what it does to the squared error held out."""

    correction: Float[Tensor, "hidden ffn"]
    ridge: float | None  # None: no repair was best
    gain: float  # reduction of the held-out sum of squares, 0 where there is no repair


def solve(fit: Moments, heldout: Moments) -> Repair:
    """Return the correction whose held-out error is least; D = C_fit (G_fit + lambda I)^-1.

    The held-out gain of a correction D is 2 <D, C> - <D G, D>, so no activations are needed.
    """
    width = fit.gram.shape[0]
    scale = fit.gram.diagonal().mean()
    best = Repair(torch.zeros_like(fit.cross), None, 0.0)
    if scale == 0:
        return best
    eye = torch.eye(width, dtype=fit.gram.dtype, device=fit.gram.device)
    for ridge in RIDGES:
        factor = torch.linalg.cholesky(fit.gram + ridge * scale * eye)
        correction = torch.cholesky_solve(fit.cross.mT, factor).mT
        gain = (
            2 * (correction * heldout.cross).sum()
            - ((correction @ heldout.gram) * correction).sum()
        )
        if gain.item() > best.gain:
            best = Repair(correction, ridge, gain.item())
    return best


def narrowed(
    full: Float[Tensor, "ffn ffn"], weight: Float[Tensor, "hidden ffn"], width: int
) -> Moments:
    """Return the moments of keeping the first `width` channels, from the full Gram matrix alone.

    What is missing is what the dropped channels gave: R = X_dropped W_dropped'.
    """
    dropped = weight[:, width:].double()
    return Moments(full[:width, :width], dropped @ full[width:, :width])
