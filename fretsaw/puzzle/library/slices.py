"""Alternatives of a subblock as slices of the parent: nothing is stored, all is recomputed.

The parent is sorted once, so that a narrower FFN is a prefix of every matrix and fewer key-value
heads are the means of neighbours. Where block distillation has trained an alternative, its weights
are laid over the slices.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.model.attention import GroupedQueryAttention
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Block, Decoder, module_of
from fretsaw.model.ffn import SwiGLU
from fretsaw.puzzle.library.heads import HeadAlignment


@dataclass(frozen=True)
class LayerOrder:
    """How one layer of the parent is rearranged; None where there is nothing to rearrange."""

    channels: Int[Tensor, " ffn"] | None = None  # most important first
    heads: HeadAlignment | None = None


# alternative, or "attention+ffn" where the two were trained together -> parameter -> tensor
Trained = Mapping[str, Mapping[str, Tensor]]


@torch.no_grad()
def sort_parent(decoder: Decoder, orders: list[LayerOrder]) -> None:
    """Rearrange FFN channels and key-value heads in place; the function is unchanged."""
    for block, order in zip(decoder.model.layers, orders, strict=True):
        assert isinstance(block, Block)
        if order.channels is not None:
            assert isinstance(block.mlp, SwiGLU)
            channels = order.channels.to(decoder.device)
            mlp = block.mlp
            for matrix, dim in ((mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)):
                matrix.weight.copy_(matrix.weight.index_select(dim, channels))
        if order.heads is not None:
            assert isinstance(block.self_attn, GroupedQueryAttention)
            _arrange_heads(block.self_attn, order.heads)


def _arrange_heads(attention: GroupedQueryAttention, heads: HeadAlignment) -> None:
    """Turn every key-value head and what reads it, then put like heads beside one another."""
    groups, head_dim = attention.num_key_value_heads, attention.head_dim
    matrices = (
        (attention.q_proj, 0, heads.turn_keys),
        (attention.k_proj, 0, heads.turn_keys),
        (attention.v_proj, 0, heads.turn_values),
        (attention.o_proj, 1, heads.turn_values),
    )
    for matrix, dim, turn in matrices:
        rows = matrix.weight.double() if dim == 0 else matrix.weight.double().mT
        heads_of = rows.unflatten(0, (groups, -1, head_dim))  # kv_heads group head_dim hidden
        turned = torch.einsum("gij,gnih->gnjh", turn.to(rows), heads_of)
        moved = turned[heads.order.to(rows.device)].flatten(0, 2)
        matrix.weight.copy_(moved if dim == 0 else moved.mT)


def pool_heads(
    weight: Float[Tensor, "kv_heads_x_head_dim hidden"], num_heads: int, num_kept: int
) -> Float[Tensor, "kept_x_head_dim hidden"]:
    """Return the mean of each run of neighbouring key (or value) heads (Puzzle, appendix A)."""
    head_dim = weight.shape[0] // num_heads
    grouped = weight.view(num_kept, num_heads // num_kept, head_dim, weight.shape[1])
    return grouped.mean(1).reshape(num_kept * head_dim, weight.shape[1])


@torch.no_grad()
def build_block(parent: Block, config: ModelConfig, wanted: BlockConfig, layer: int) -> Block:
    """Return a block of the wanted shapes whose weights come from the (sorted) parent's alone.

    Raises `ValueError` for a shape that the parent's block does not contain.
    """
    before = config.blocks[layer]
    _check_contained(before, wanted, layer)
    weight = parent.state_dict()
    for half, kind, own in (
        ("self_attn", wanted.attention_kind, before.attention),
        ("mlp", wanted.ffn_kind, before.ffn),
    ):
        if kind.name not in ("none", own):
            turned = module_of(kind).weights_from(parent.get_submodule(half))
            weight |= {f"{half}.{name}": tensor for name, tensor in turned.items()}
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


def pair_name(attention: str, ffn: str) -> str:
    """Return the name of two alternatives that were trained together."""
    return f"{attention}+{ffn}"


@torch.no_grad()
def alternative(
    parent: Block, config: ModelConfig, wanted: BlockConfig, layer: int, trained: Trained
) -> Block:
    """Return `build_block` with trained weights in it: the pair's, else each subblock's own.

    What was not trained keeps the weights that come from the parent. All is in full precision.
    """
    wanted = wanted.stored("full", "full")
    block = build_block(parent, config, wanted, layer)
    names = wanted.attention_name, wanted.ffn_name
    for name in (pair,) if (pair := pair_name(*names)) in trained else names:
        for parameter, tensor in trained.get(name, {}).items():
            block.get_parameter(parameter).copy_(tensor)
    return block


def _check_contained(before: BlockConfig, wanted: BlockConfig, layer: int) -> None:
    heads, kept = before.num_key_value_heads, wanted.num_key_value_heads
    if wanted.attention == "gqa" and (not heads or heads % kept):
        raise ValueError(
            f"layer {layer}: {wanted.attention_name} does not divide the parent's "
            f"{before.attention_name}; its heads cannot be pooled evenly"
        )
    if wanted.intermediate_size > before.intermediate_size:
        raise ValueError(
            f"layer {layer}: {wanted.ffn_name} is wider than the parent's {before.ffn_name}"
        )
    if wanted.attention != "none" == before.attention or wanted.ffn != "none" == before.ffn:
        raise ValueError(f"layer {layer}: the parent has nothing there to replace by a matrix")
