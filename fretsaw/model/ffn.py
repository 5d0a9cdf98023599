"""The FFN half of a block: SwiGLU (arXiv 2002.05202) or a single matrix."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fretsaw.model.config import ModelConfig
from fretsaw.model.kinds import Precision
from fretsaw.model.linear import linear


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int, precision: Precision = "full"):
        super().__init__()
        self.gate_proj = linear(hidden_size, intermediate_size, precision)
        self.up_proj = linear(hidden_size, intermediate_size, precision)
        self.down_proj = linear(intermediate_size, hidden_size, precision)

    @classmethod
    def build(cls, config: ModelConfig, size: int, precision: Precision = "full") -> "SwiGLU":
        """Return one of `size` channels."""
        return cls(config.hidden_size, size, precision)

    @property
    def output(self) -> nn.Linear:
        """The last matrix."""
        return self.down_proj

    def entering(
        self, x: Float[Tensor, "*tokens hidden"], context: object = None
    ) -> Float[Tensor, "*tokens ffn"]:
        """Return what enters `down_proj`: silu(gate(x)) * up(x)."""
        return F.silu(self.gate_proj(x)) * self.up_proj(x)

    def forward(self, x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        """Apply the FFN to every token."""
        return self.down_proj(self.entering(x))


class LinearFfn(nn.Module):
    """One matrix in place of an FFN (Puzzle, arXiv 2411.19146)."""

    @classmethod
    def build(cls, config: ModelConfig, size: int, precision: Precision = "full") -> "LinearFfn":
        """Return one of the network's hidden size; it has no other."""
        return cls(config.hidden_size, precision)

    @staticmethod
    def weights_from(half: SwiGLU) -> dict[str, Tensor]:
        """Return the FFN without its gate: W_down W_up (Puzzle)."""
        return {"linear_mlp.weight": half.down_proj.weight @ half.up_proj.weight}

    @property
    def output(self) -> nn.Linear:
        """The only matrix."""
        return self.linear_mlp

    def entering(
        self, x: Float[Tensor, "*tokens hidden"], context: object = None
    ) -> Float[Tensor, "*tokens hidden"]:
        """Return what enters it: the input."""
        return x

    def __init__(self, hidden_size: int, precision: Precision = "full"):
        super().__init__()
        self.linear_mlp = linear(hidden_size, hidden_size, precision)

    def forward(self, x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        """Apply the matrix to every token."""
        return self.linear_mlp(x)
