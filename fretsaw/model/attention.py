"""The attention half of a block, its key-value cache and its masks.

Everything a layer needs comes in one `AttentionContext`, made once per forward and shared by the
layers: rotary tables, the mask, and the cache. Nothing is read from module globals.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fretsaw.model.config import ModelConfig
from fretsaw.model.rope import rotate


class KVCache:
    """Keys and values of every layer that attends, and how many tokens each row holds.

    Rows may hold different numbers of tokens. While they are equal, `start` is that number and
    writes are slices; once they differ, `start` is None and every row writes at its own length.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        def empty(num_heads: int) -> Tensor | None:
            shape = (batch_size, num_heads, max_length, config.head_dim)
            return torch.zeros(shape, dtype=dtype, device=device) if num_heads else None

        heads = [block.num_key_value_heads for block in config.blocks]
        self.keys = [empty(n) for n in heads]
        self.values = [empty(n) for n in heads]
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.start: int | None = 0
        self.max_length = max_length

    def advance(self, num_tokens: int) -> None:
        """Count `num_tokens` more in every row, after a forward has written them."""
        self.lengths += num_tokens
        if self.start is not None:
            self.start += num_tokens

    def set_lengths(self, lengths: Int[Tensor, " batch"]) -> None:
        """Declare how many tokens each row truly holds (after a prefill padded on the right)."""
        self.lengths = lengths.to(self.lengths)
        longest, shortest = int(lengths.max()), int(lengths.min())
        self.start = longest if longest == shortest else None

    def keep(self, rows: Int[Tensor, " kept"]) -> Int[Tensor, " kept"]:
        """Keep only these rows (ascending), so that finished ones stop costing; return their order.

        In place: the last rows move to where others left, so little is copied.
        """
        num_kept = len(rows)
        stays = rows[rows < num_kept]
        is_free = torch.ones(num_kept, dtype=torch.bool, device=rows.device)
        is_free[stays] = False
        moved = rows[rows >= num_kept]
        order = torch.arange(num_kept, device=rows.device)
        order[is_free] = moved
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                if tensor is not None:
                    tensor[:num_kept][is_free] = tensor[moved]
                    tensors[layer] = tensor[:num_kept]
        self.set_lengths(self.lengths[order])
        return order

    def spread(self, rows: Int[Tensor, " copies"], max_length: int) -> None:
        """Replace the rows by copies of them, with room for `max_length` tokens each."""
        used = int(self.lengths.max())
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                if tensor is not None:
                    _, num_heads, _, head_dim = tensor.shape
                    wider = tensor.new_zeros(len(rows), num_heads, max_length, head_dim)
                    wider[:, :, :used] = tensor[rows, :, :used]
                    tensors[layer] = wider
        self.max_length = max_length
        self.set_lengths(self.lengths[rows])

    def write(
        self,
        layer: int,
        keys: Float[Tensor, "batch kv_heads seq head_dim"],
        values: Float[Tensor, "batch kv_heads seq head_dim"],
        visible: int,
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values; return the first `visible` positions of the layer's cache."""
        cached_keys, cached_values = self.keys[layer], self.values[layer]
        assert cached_keys is not None, "layer has no attention"
        assert cached_values is not None
        if self.start is not None:
            cached_keys[:, :, self.start : visible] = keys
            cached_values[:, :, self.start : visible] = values
        else:
            rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
            at = self.lengths[:, None] + torch.arange(keys.shape[2], device=keys.device)
            cached_keys[rows, :, at] = keys.transpose(1, 2).to(cached_keys.dtype)
            cached_values[rows, :, at] = values.transpose(1, 2).to(cached_values.dtype)
        return cached_keys[:, :, :visible], cached_values[:, :, :visible]


@dataclass
class AttentionContext:
    """What the attention layers of one forward share."""

    cos: Float[Tensor, "batch seq head_dim"]
    sin: Float[Tensor, "batch seq head_dim"]
    mask: Bool[Tensor, "#batch 1 seq visible"] | None = None  # None: causal, or see `is_causal`
    is_causal: bool = True
    cache: KVCache | None = None
    visible: int = 0  # cached positions that this forward may look at


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


def cached_mask(cache: KVCache, seq: int, visible: int) -> Bool[Tensor, "batch 1 seq visible"]:
    """Return which cached positions each new token may see, row by row."""
    at = cache.lengths[:, None] + torch.arange(seq, device=cache.lengths.device)
    return (torch.arange(visible, device=at.device) <= at[:, :, None])[:, None]


def attend_grouped(
    queries: Float[Tensor, "batch heads 1 head_dim"],
    keys: Float[Tensor, "batch kv_heads visible head_dim"],
    values: Float[Tensor, "batch kv_heads visible head_dim"],
    mask: Bool[Tensor, "#batch 1 1 visible"] | None,
) -> Float[Tensor, "batch heads 1 head_dim"]:
    """Attend with one new token a row, the queries of a group as one matrix against shared keys.

    The same as scaled_dot_product_attention, which on a CPU reads shared keys once for every query
    head; here fewer key-value heads cost less, as they should.
    """
    grouped = queries.unflatten(1, (keys.shape[1], -1)).squeeze(3)  # batch kv_heads group head_dim
    scores = grouped @ keys.mT * queries.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ values).flatten(1, 2)[:, :, None]


class GroupedQueryAttention(nn.Module):
    """Multi-head attention whose query heads share fewer key-value heads (arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig, num_key_value_heads: int, layer: int):
        super().__init__()
        hidden, head_dim = config.hidden_size, config.head_dim
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, num_key_value_heads
        self.head_dim, self.layer = head_dim, layer
        self.q_proj = nn.Linear(hidden, self.num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, num_key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * head_dim, hidden, bias=False)

    def mix(
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
        if context.cache is not None:
            keys, values = context.cache.write(self.layer, keys, values, context.visible)
        is_grouped = self.num_heads != self.num_key_value_heads
        if seq == 1 and is_grouped and x.device.type == "cpu":
            mixed = attend_grouped(queries, keys, values, context.mask)
        else:
            mixed = F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=context.mask,
                is_causal=context.is_causal and context.mask is None,
                enable_gqa=is_grouped,
            )
        return mixed.transpose(1, 2).reshape(batch, seq, self.num_heads * self.head_dim)

    def forward(
        self, x: Float[Tensor, "batch seq hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch seq hidden"]:
        """Attend, then project back to the hidden size."""
        return self.o_proj(self.mix(x, context))


class LinearMixer(nn.Module):
    """One matrix in place of attention: every token attends to itself alone (Puzzle)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear_attn = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self, x: Float[Tensor, "batch seq hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch seq hidden"]:
        """Apply the matrix to every token."""
        return self.linear_attn(x)
