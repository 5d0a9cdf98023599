"""FP8 matrices: weights in e4m3 with a scale a row, activations in e4m3 with a scale a token.

As the Llama-Nemotron paper generates its rollouts (arXiv 2505.00949, section 5): weights are cast
once, activations at every call, and products are accumulated in higher precision.
"""

import torch
from jaxtyping import Float
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def quantise_rows(
    x: Float[Tensor, "rows columns"],
) -> tuple[Tensor, Float[Tensor, "rows 1"]]:
    """Return (e4m3 values, float32 scales) with x close to values * scales, row by row."""
    scales = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (x.float() / scales).to(FP8), scales


def product(
    x: Float[Tensor, "tokens hidden"], weight: Tensor, scales: Float[Tensor, "out 1"]
) -> Float[Tensor, "tokens out"]:
    """Return x W^T with both sides in FP8, in the precision of x.

    On an accelerator it is one scaled matrix product; elsewhere the same numbers are multiplied in
    float32, which is what tests compare with and no faster.
    """
    values, token_scales = quantise_rows(x)
    if x.is_cuda:
        return torch._scaled_mm(
            values, weight.t(), scale_a=token_scales, scale_b=scales.t(), out_dtype=torch.bfloat16
        ).to(x.dtype)
    return ((values.float() @ weight.float().t()) * token_scales * scales.t()).to(x.dtype)


class Fp8Matrix:
    """A weight of (out, in) in FP8 that maps rows of tokens."""

    def __init__(self, *weights: Float[Tensor, "_ hidden"]):
        self.weight, self.scales = quantise_rows(torch.cat([w.detach() for w in weights]))

    def __call__(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens out"]:
        """Return x W^T."""
        return product(x, self.weight, self.scales)

    def add_to(
        self, x: Float[Tensor, "tokens out"], y: Float[Tensor, "tokens hidden"]
    ) -> Float[Tensor, "tokens out"]:
        """Return x + y W^T."""
        return x + product(y, self.weight, self.scales)
