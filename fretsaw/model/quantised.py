"""Blocks with their matrices in 8 bits, made from blocks in full precision."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.kinds import Precision
from fretsaw.model.linear import QuantisedLinear, dequantise, quantise_rows
from fretsaw.model.without_storage import without_storage


def quantised_block(block: Block, config: ModelConfig, wanted: BlockConfig) -> Block:
    """Return a block with its matrices rounded as `wanted` says; what it does not round is shared.

    `wanted` has the block's shapes.
    """
    with without_storage():
        made = Block(config, wanted)
    weights = full_weights(block)
    for name, module in made.named_modules():
        if isinstance(module, QuantisedLinear):
            codes, scales = quantise_rows(weights[f"{name}.weight"], module.precision)
            weights |= {f"{name}.weight": codes, f"{name}.weight_scale": scales}
    made.load_state_dict(weights, assign=True)
    return made.requires_grad_(False)


def quantised(decoder: Decoder, wanted: tuple[BlockConfig, ...]) -> Decoder:
    """Return a decoder with every block's matrices rounded as `wanted` says; it shares the rest."""
    config = replace(decoder.config, blocks=wanted)
    pairs = zip(decoder.model.layers, wanted, strict=True)
    blocks = [quantised_block(b, config, w) for b, w in pairs if isinstance(b, Block)]
    return decoder.with_blocks(config, blocks)


def full_weights(block: Block) -> dict[str, Float[Tensor, "..."]]:
    """Return a block's weights by name, those in 8 bits multiplied out."""
    weights = block.state_dict()
    for name, module in block.named_modules():
        if isinstance(module, QuantisedLinear):
            del weights[f"{name}.weight_scale"]
            weights[f"{name}.weight"] = dequantise(module.weight, module.weight_scale)
    return weights


def randomise_codes(decoder: Decoder) -> None:
    """Fill the matrices in 8 bits, which are made of zeros: to multiply those may be faster."""
    for module in decoder.modules():
        if isinstance(module, QuantisedLinear):
            drawn = torch.randn(module.weight.shape, device=module.weight.device)
            module.weight, module.weight_scale = quantise_rows(drawn, module.precision)


def everywhere(config: ModelConfig, precision: Precision) -> tuple[BlockConfig, ...]:
    """Return the blocks with every matrix in one precision."""
    return tuple(block.stored(precision, precision) for block in config.blocks)
