"""Alternatives of a subblock as slices of the parent: nothing is stored, all is recomputed.

The parent is sorted once by importance, so that a narrower FFN is a prefix of every matrix.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.ffn import SwiGLU


@torch.no_grad()
def sort_parent(decoder: Decoder, orders: list[Int[Tensor, " ffn"]]) -> None:
    """Permute every FFN's channels in place, most important first; the function is unchanged."""
    for block, order in zip(decoder.model.layers, orders, strict=True):
        if isinstance(block, Block) and block.has_ffn and isinstance(block.mlp, SwiGLU):
            order = order.to(decoder.device)
            mlp = block.mlp
            for matrix, dim in ((mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)):
                matrix.weight.copy_(matrix.weight.index_select(dim, order))


def pool_heads(
    weight: Float[Tensor, "kv_heads_x_head_dim hidden"], num_heads: int, num_kept: int
) -> Float[Tensor, "kept_x_head_dim hidden"]:
    """Return the mean of each run of neighbouring key (or value) heads (Puzzle, appendix A)."""
    head_dim = weight.shape[0] // num_heads
    grouped = weight.view(num_kept, num_heads // num_kept, head_dim, weight.shape[1])
    return grouped.mean(1).reshape(num_kept * head_dim, weight.shape[1])


@torch.no_grad()
def build_block(parent: Block, config: ModelConfig, wanted: BlockConfig, layer: int) -> Block:
    """Return a block of the wanted shapes whose weights are slices of the (sorted) parent's."""
    before = config.blocks[layer]
    if wanted.attention == "gqa" and before.num_key_value_heads % wanted.num_key_value_heads:
        raise ValueError(
            f"layer {layer}: {wanted.attention_name} does not divide the parent's "
            f"{before.attention_name}; its heads cannot be pooled evenly"
        )
    if wanted.intermediate_size > before.intermediate_size:
        raise ValueError(
            f"layer {layer}: {wanted.ffn_name} is wider than the parent's {before.ffn_name}"
        )
    if "linear" in (wanted.attention, wanted.ffn) and wanted != before:
        raise ValueError(f"layer {layer}: linear alternatives are not in this library")
    weight = parent.state_dict()
    with torch.device("meta"):
        block = Block(config, wanted)
    sliced: dict[str, Tensor] = {}
    for name, shape in ((n, p.shape) for n, p in block.named_parameters()):
        whole = weight[name]
        if name in ("self_attn.k_proj.weight", "self_attn.v_proj.weight"):
            heads = before.num_key_value_heads
            whole = pool_heads(whole, heads, wanted.num_key_value_heads)
        sliced[name] = whole[tuple(slice(n) for n in shape)].clone()
    block.load_state_dict(sliced, assign=True)
    return block.requires_grad_(False)
