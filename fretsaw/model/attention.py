"""The attention half of a block, and its masks.

Everything a layer needs comes in one `AttentionContext`, made once per forward and shared by the
layers: rotary tables and the mask. Nothing is read from module globals. Decoding with a cache is
the engine's business.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fretsaw.model.config import ModelConfig
from fretsaw.model.kinds import Precision
from fretsaw.model.linear import linear
from fretsaw.model.rope import rotate


@dataclass
class AttentionContext:
    """What the attention layers of one forward share."""

    cos: Float[Tensor, "batch seq head_dim"]
    sin: Float[Tensor, "batch seq head_dim"]
    mask: Bool[Tensor, "#batch 1 seq seq"] | None = None  # None: causal


def packed_mask(
    cu_seqlens: Int[Tensor, " num_documents_plus_1"], batch_size: int, seq: int
) -> Bool[Tensor, "batch 1 seq seq"]:
    """Return the causal mask of packed rows, in which no token sees another document.

    `cu_seqlens` counts over the rows laid end to end; a document never crosses a row.
    """
    tokens = torch.arange(batch_size * seq, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, tokens, right=True).view(batch_size, seq)
    same = document[:, :, None] == document[:, None, :]
    causal = torch.ones(seq, seq, dtype=torch.bool, device=cu_seqlens.device).tril()
    return (same & causal)[:, None]


def packed_positions(
    cu_seqlens: Int[Tensor, " num_documents_plus_1"], batch_size: int, seq: int
) -> Int[Tensor, "batch seq"]:
    """Return positions that restart at every document of packed rows."""
    tokens = torch.arange(batch_size * seq, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, tokens, right=True) - 1
    return (tokens - cu_seqlens[document]).view(batch_size, seq)


class GroupedQueryAttention(nn.Module):
    """Multi-head attention whose query heads share fewer key-value heads (arXiv 2305.13245)."""

    def __init__(
        self, config: ModelConfig, num_key_value_heads: int, precision: Precision = "full"
    ):
        super().__init__()
        hidden, head_dim = config.hidden_size, config.head_dim
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, num_key_value_heads
        self.head_dim = head_dim
        self.q_proj = linear(hidden, self.num_heads * head_dim, precision)
        self.k_proj = linear(hidden, num_key_value_heads * head_dim, precision)
        self.v_proj = linear(hidden, num_key_value_heads * head_dim, precision)
        self.o_proj = linear(self.num_heads * head_dim, hidden, precision)

    @classmethod
    def build(
        cls, config: ModelConfig, size: int, precision: Precision = "full"
    ) -> "GroupedQueryAttention":
        """Return one of `size` key-value heads."""
        return cls(config, size, precision)

    @property
    def output(self) -> nn.Linear:
        """The last matrix."""
        return self.o_proj

    def entering(
        self, x: Float[Tensor, "batch seq hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch seq heads_x_head_dim"]:
        """Return what enters `o_proj`: every head's weighted values, side by side."""
        batch, seq, _ = x.shape
        shape = (batch, seq, -1, self.head_dim)
        queries = self.q_proj(x).view(shape).transpose(1, 2)  # -> batch heads seq head_dim
        keys = self.k_proj(x).view(shape).transpose(1, 2)  # -> batch kv_heads seq head_dim
        values = self.v_proj(x).view(shape).transpose(1, 2)
        queries = rotate(queries, context.cos, context.sin)
        keys = rotate(keys, context.cos, context.sin)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=context.mask,
            is_causal=context.mask is None,
            enable_gqa=self.num_heads != self.num_key_value_heads,
        )
        return mixed.transpose(1, 2).reshape(batch, seq, self.num_heads * self.head_dim)

    def forward(
        self, x: Float[Tensor, "batch seq hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch seq hidden"]:
        """Attend, then project back to the hidden size."""
        return self.o_proj(self.entering(x, context))


class LinearMixer(nn.Module):
    """One matrix in place of attention: every token attends to itself alone (Puzzle)."""

    @classmethod
    def build(cls, config: ModelConfig, size: int, precision: Precision = "full") -> "LinearMixer":
        """Return one of the network's hidden size; it has no other."""
        return cls(config.hidden_size, precision)

    @staticmethod
    def weights_from(half: GroupedQueryAttention) -> dict[str, Tensor]:
        """Return what attention does to a token that attends to itself alone: W_O W_V (Puzzle)."""
        group = half.num_heads // half.num_key_value_heads
        values = half.v_proj.weight.unflatten(0, (half.num_key_value_heads, -1))
        alone = half.o_proj.weight @ values.repeat_interleave(group, 0).flatten(0, 1)
        return {"linear_attn.weight": alone}

    @property
    def output(self) -> nn.Linear:
        """The only matrix."""
        return self.linear_attn

    def entering(
        self, x: Float[Tensor, "*tokens hidden"], context: AttentionContext | None
    ) -> Float[Tensor, "*tokens hidden"]:
        """Return what enters it: the input."""
        return x

    def __init__(self, hidden_size: int, precision: Precision = "full"):
        super().__init__()
        self.linear_attn = linear(hidden_size, hidden_size, precision)

    def forward(
        self, x: Float[Tensor, "batch seq hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch seq hidden"]:
        """Apply the matrix to every token."""
        return self.linear_attn(x)
