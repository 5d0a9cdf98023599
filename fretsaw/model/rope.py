"""Rotary position embeddings (RoFormer, arXiv 2104.09864) with Llama-3's frequency scaling."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.model.config import ModelConfig


def rope_inv_freq(config: ModelConfig) -> Float[Tensor, " half_head_dim"]:
    """Return the inverse frequencies theta^(-2i/d), stretched as Llama 3.1 does.

    Wavelengths beyond `original / low_freq_factor` are divided by `factor`, those below
    `original / high_freq_factor` are kept, and those between are blended linearly.
    """
    # On the CPU even where a model is laid out on the meta device: these are values, not weights.
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float()
    inv_freq = 1.0 / (config.rope_theta ** (pairs / config.head_dim))
    scaling = config.rope_scaling
    if scaling is None:
        return inv_freq
    original = scaling.original_max_position_embeddings
    wavelength = 2 * math.pi / inv_freq
    stretched = inv_freq / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = (original / wavelength - low) / (high - low)
    blended = (1 - keep) * stretched + keep * inv_freq
    scaled = torch.where(wavelength > original / low, stretched, inv_freq)
    is_between = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(is_between, blended, scaled)


def rope_tables(
    inv_freq: Float[Tensor, " half_head_dim"], positions: Int[Tensor, "batch seq"]
) -> tuple[Float[Tensor, "batch seq head_dim"], Float[Tensor, "batch seq head_dim"]]:
    """Return cosine and sine for every position, in float32."""
    angles = positions[..., None].float() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "batch heads seq head_dim"],
    cos: Float[Tensor, "#batch seq head_dim"],
    sin: Float[Tensor, "#batch seq head_dim"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Rotate queries or keys; halves are paired as Hugging Face's Llama pairs them."""
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat((-second, first), dim=-1)
    return (x * cos[:, None].to(x.dtype)) + (swapped * sin[:, None].to(x.dtype))
