"""FFN Fusion (arXiv 2503.18908): FFNs with no attention between them become one wider FFN.

A run of FFNs y_j = x_j + FFN_j(n_j(x_j)), each reading what the one before it wrote, is replaced by
x + sum_j FFN_j(n_j(x)), all reading the same x. That is the only approximation; that the sum is one
FFN of the widths' sum is exact: every norm's weight is folded into the columns of its own gate and
up matrix, their rows are stacked, and the columns of the down matrices stand side by side. The norm
that is left has weight one. The paper keeps the last norm of the run for all; that is the variant
`last`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.ffn import LinearFfn, SwiGLU
from fretsaw.puzzle.library.runs import Group, fused_config

Norm = Literal["folded", "last"]


@torch.no_grad()
def fuse_blocks(
    blocks: Sequence[Block], config: ModelConfig, shape: BlockConfig, norm: Norm = "folded"
) -> Block:
    """Return a block of the first one's attention, shared, and all their FFNs in one.

    `shape` is the fused block's (`fused_shape`). With norm "folded" its `feed` is
    x + sum_j FFN_j(n_j(x)) to rounding; with "last" every n_j is the last one's, as in the paper.
    Folding is done in float32 at least and rounded once.
    """
    with torch.device("meta"):
        fused = Block(config, shape)
    if fused.has_attention:
        fused.input_layernorm = blocks[0].input_layernorm
        fused.self_attn = blocks[0].self_attn
    norms = [block.post_attention_layernorm.weight for block in blocks]
    wide = torch.promote_types(norms[0].dtype, torch.float32)

    def reading(matrix: nn.Linear, own: Tensor) -> Float[Tensor, "ffn hidden"]:
        """Return a matrix that reads the one norm's output in place of its own norm's."""
        return matrix.weight.to(wide) * own.to(wide) if norm == "folded" else matrix.weight

    def parameter(weight: Tensor) -> nn.Parameter:
        return nn.Parameter(weight.to(norms[0].dtype).contiguous())

    shared = torch.ones_like(norms[-1]) if norm == "folded" else norms[-1].detach().clone()
    fused.post_attention_layernorm.weight = parameter(shared)
    pairs = list(zip([block.mlp for block in blocks], norms, strict=True))
    if isinstance(fused.mlp, SwiGLU):
        parts = [(mlp, own) for mlp, own in pairs if isinstance(mlp, SwiGLU)]
        gates = [reading(mlp.gate_proj, own) for mlp, own in parts]
        ups = [reading(mlp.up_proj, own) for mlp, own in parts]
        fused.mlp.gate_proj.weight = parameter(torch.cat(gates))
        fused.mlp.up_proj.weight = parameter(torch.cat(ups))
        downs = [mlp.down_proj.weight for mlp, _ in parts]
        fused.mlp.down_proj.weight = parameter(torch.cat(downs, dim=1))
    else:
        assert isinstance(fused.mlp, LinearFfn)
        summed = [reading(m.linear_mlp, own) for m, own in pairs if isinstance(m, LinearFfn)]
        fused.mlp.linear_mlp.weight = parameter(torch.stack(summed).sum(0))
    return fused


def feed_in_parallel(
    blocks: Sequence[Block], x: Float[Tensor, "*tokens hidden"]
) -> Float[Tensor, "*tokens hidden"]:
    """Return x + sum_j FFN_j(n_j(x)): what a fused block computes, FFN by FFN."""
    return x + sum(block.mlp(block.post_attention_layernorm(x)) for block in blocks)


def with_fused(
    decoder: Decoder, groups: Sequence[Group], fused: Sequence[Block], *, keeps_layers: bool = False
) -> Decoder:
    """Return a decoder in which every group is its fused block; the rest is shared."""
    config = fused_config(decoder.config, groups, keeps_layers=keeps_layers)
    blocks = {group.first: block for group, block in zip(groups, fused, strict=True)}
    freed = {i for group in groups for i in group.layers} - set(blocks)
    layers: list[nn.Module] = []
    for i, block in enumerate(decoder.model.layers):
        if i not in freed:
            layers.append(blocks.get(i, block))
        elif keeps_layers:
            layers.append(Block(config, BlockConfig(attention="none", ffn="none")))
    return decoder.with_blocks(config, layers)
