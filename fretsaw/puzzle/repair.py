"""Closed-form repair: the best output matrix of a changed subblock is a least-squares problem.

With X the activations that enter the subblock's last matrix (`down_proj`, `o_proj`, or the single
matrix of a linear subblock) and R what the subblock as built misses of its target, the correction D
of that matrix minimises |R - X D'|^2 + lambda |D|^2: a ridge centred on what was there. One half of
the calibration text fits every lambda, the other half chooses among them, and no repair at all is
always a candidate; so the chosen one is never worse there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fretsaw.model.attention import AttentionContext, GroupedQueryAttention, LinearMixer
from fretsaw.model.decoder import Block
from fretsaw.model.ffn import LinearFfn, SwiGLU

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


# --- whole subblocks ------------------------------------------------------------------------------

Pairs = Iterable[tuple[Tensor, Tensor]]  # the state that enters the block, and the one wanted after


def output_matrix(block: Block, kind: str) -> nn.Linear | None:
    """Return the last matrix of the "attention" or "ffn" half, which a repair changes."""
    if not (block.has_attention if kind == "attention" else block.has_ffn):
        return None
    half = block.self_attn if kind == "attention" else block.mlp
    match half:
        case GroupedQueryAttention():
            return half.o_proj
        case LinearMixer():
            return half.linear_attn
        case SwiGLU():
            return half.down_proj
        case LinearFfn():
            return half.linear_mlp
    raise AssertionError(f"a {kind} of type {type(half).__name__}")


def repair(block: Block, kind: str, pairs: Pairs, context: AttentionContext) -> Repair | None:
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
        if isinstance(half, GroupedQueryAttention):
            return half.mix(norm(x), context)
        return half.activations(norm(x)) if isinstance(half, SwiGLU) else norm(x)

    return _refit(matrix, entering, pairs)


def _refit(projection: nn.Linear, entering: Callable[[Tensor], Tensor], pairs: Pairs) -> Repair:
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
