"""Closed-form repair: the best output matrix of a changed subblock is a least-squares problem.

With X the activations that enter the subblock's last matrix (`down_proj`, `o_proj`, or the single
matrix of a linear subblock) and R what the subblock as built misses of its target, the correction D
of that matrix minimises |R - X D'|^2 + lambda |D|^2: a ridge centred on what was there. One half of
the calibration text fits every lambda, the other half chooses among them, and no repair at all is
always a candidate. The chosen lambda is then solved on both halves.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fretsaw.model.attention import AttentionContext
from fretsaw.model.decoder import Block
from fretsaw.scenario.memory import gram_bytes

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # lambda, as a fraction of the mean diagonal of X'X


def widest(free: float) -> int:
    """Return the most inputs of a matrix that can be refitted in `free` bytes."""
    return int((max(free, 0.0) / gram_bytes(1)) ** 0.5)


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
    gain: float  # fall of the second half's sum of squares by the fit on the first


def solve(fit: Moments, heldout: Moments) -> Repair:
    """Return the correction D = C (G + lambda I)^-1 of both halves' text together.

    lambda is the one whose D, fitted on the first half, leaves the least error on the second. That
    gain is 2 <D, C> - <D G, D> there, so no activations are needed.
    """
    chosen, most = None, 0.0
    for ridge in RIDGES if fit.gram.any() else ():
        correction = _ridge_solution(fit, ridge)
        gain = (
            2 * (correction * heldout.cross).sum()
            - ((correction @ heldout.gram) * correction).sum()
        )
        if gain.item() > most:
            chosen, most = ridge, gain.item()
    if chosen is None:
        return Repair(torch.zeros_like(fit.cross), None, 0.0)
    both = Moments(fit.gram + heldout.gram, fit.cross + heldout.cross)
    return Repair(_ridge_solution(both, chosen), chosen, most)


def _ridge_solution(moments: Moments, ridge: float) -> Float[Tensor, "hidden ffn"]:
    gram = moments.gram
    scale = gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram + ridge * scale * eye)
    return torch.cholesky_solve(moments.cross.mT, factor).mT


# --- whole subblocks ------------------------------------------------------------------------------

StatePairs = Iterable[
    tuple[Tensor, Tensor]
]  # the state that enters the block, and the one wanted after


def output_matrix(block: Block, kind: str) -> nn.Linear | None:
    """Return the last matrix of the "attention" or "ffn" half, which a repair changes."""
    if not (block.has_attention if kind == "attention" else block.has_ffn):
        return None
    return (block.self_attn if kind == "attention" else block.mlp).output


def repair(block: Block, kind: str, pairs: StatePairs, context: AttentionContext) -> Repair | None:
    """Refit the last matrix of one half of a block in place, so that it nears what is wanted.

    Each pair is (the state before that half, the state wanted after it), batch seq hidden. Returns
    None where the half is missing and there is nothing to refit.
    """
    matrix = output_matrix(block, kind)
    if matrix is None:
        return None
    half = block.self_attn if kind == "attention" else block.mlp
    norm = block.input_layernorm if kind == "attention" else block.post_attention_layernorm

    def entering(x: Tensor) -> Tensor:
        return half.entering(norm(x), context)

    return _refit(matrix, entering, pairs)


def _refit(
    projection: nn.Linear, entering: Callable[[Tensor], Tensor], pairs: StatePairs
) -> Repair:
    """Refit a matrix on even rows, choose the ridge on odd ones, and add the correction."""
    hidden, width = projection.weight.shape
    halves = [Moments.zeros(width, hidden, projection.weight.device) for _ in range(2)]
    for x, wanted in pairs:
        activations = entering(x)
        missing = wanted - (x + projection(activations))
        for i, half in enumerate(halves):
            half.add(activations[i::2].flatten(0, 1), missing[i::2].flatten(0, 1))
    solved = solve(*halves)
    projection.weight += solved.correction.to(projection.weight.dtype)
    return solved
