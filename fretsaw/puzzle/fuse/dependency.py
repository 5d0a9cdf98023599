"""How much a block depends on another: what removing the one changes of what the other adds.

With h_j(X) = f_j(X) - X what block j adds to the stream and h~_j^i the same with block i left out,
M_ij = 1 - cos(h_j, h~_j^i), the mean over tokens (FFN Fusion, arXiv 2503.18908, section 3). A row
of blocks that hardly depend on one another can read the same input.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.model.decoder import Block, Decoder


@torch.inference_mode()
def block_dependency(
    decoder: Decoder,
    token_ids: Int[Tensor, "rows seq"],
    batch_rows: int,
    step: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, "layer layer"]:
    """Return M, row i the block that is left out, column j the one that is watched.

    NaN where j is not after i, or one of the two adds nothing because it has no subblock. `step` is
    told how many of the blocks are done. Costs about layers^2 / 2 blocks' forwards, twice.
    """
    blocks = [block for block in decoder.model.layers if isinstance(block, Block)]
    is_there = [block.has_attention or block.has_ffn for block in blocks]
    count = len(blocks)
    matrix = torch.full((count, count), torch.nan, dtype=torch.float64)
    context = decoder.context(1, token_ids.shape[1])
    batches = list(decoder.model.embed_tokens(token_ids).split(batch_rows))
    for i, removed in enumerate(blocks):
        sums = torch.zeros(count, dtype=torch.float64)
        for at, x in enumerate(batches):
            without, batches[at] = x, removed(x, context)
            with_it = batches[at]
            for j in range(i + 1, count) if is_there[i] else ():
                after, after_without = blocks[j](with_it, context), blocks[j](without, context)
                distance = 1 - F.cosine_similarity(after - with_it, after_without - without, dim=-1)
                sums[j] += distance.double().sum().cpu()
                with_it, without = after, after_without
        for j in range(i + 1, count):
            if is_there[i] and is_there[j]:
                matrix[i, j] = sums[j] / token_ids.numel()
        step(i + 1)
    return matrix
