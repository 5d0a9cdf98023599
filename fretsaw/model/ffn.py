"""The FFN half of a block: SwiGLU (arXiv 2002.05202) or a single matrix."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fretsaw.model.config import Precision
from fretsaw.model.linear import linear


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int, precision: Precision = "full"):
        super().__init__()
        self.gate_proj = linear(hidden_size, intermediate_size, precision)
        self.up_proj = linear(hidden_size, intermediate_size, precision)
        self.down_proj = linear(intermediate_size, hidden_size, precision)

    def activations(self, x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens ffn"]:
        """Return what enters `down_proj`: silu(gate(x)) * up(x)."""
        return F.silu(self.gate_proj(x)) * self.up_proj(x)

    def forward(self, x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        """Apply the FFN to every token."""
        return self.down_proj(self.activations(x))


class LinearFfn(nn.Module):
    """One matrix in place of an FFN (Puzzle, arXiv 2411.19146)."""

    def __init__(self, hidden_size: int, precision: Precision = "full"):
        super().__init__()
        self.linear_mlp = linear(hidden_size, hidden_size, precision)

    def forward(self, x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        """Apply the matrix to every token."""
        return self.linear_mlp(x)
