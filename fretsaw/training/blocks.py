"""What a training loop may do to the blocks of a decoder, from outside: compile and recompute."""

import functools

import torch
from torch.utils.checkpoint import checkpoint

from fretsaw.model.decoder import Decoder

MAX_GRAPHS = 64  # one per distinct block shape


def prepare_blocks(decoder: Decoder, *, compile: bool, recompute: bool) -> None:
    """Compile each block, and keep only its input for the backward pass, which runs it again.

    Only `forward` is replaced, so names of weights stay, and hooks of sharding stay outside.
    """
    if compile:
        torch._dynamo.config.recompile_limit = MAX_GRAPHS
    for block in decoder.model.layers:
        if compile:
            block.forward = torch.compile(block.forward)
        if recompute:
            block.forward = functools.partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
