"""One matrix of a subblock: as it is, or in 8 bits.

In 8 bits weights have a scale a row, activations a scale a token, found at every call: as the
Llama-Nemotron paper generates its rollouts in FP8 (arXiv 2505.00949, section 5), and as
compressed-tensors stores weights "by channel" with activations "dynamic by token".
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fretsaw.model.kinds import Precision
from fretsaw.scenario.processor import multiplies_int8

CODES: dict[Precision, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
LARGEST: dict[Precision, float] = {"fp8": 448.0, "int8": 127.0}  # that a code stands for
MIN_INT_MM_ROWS = 17  # what CUDA's integer product asks for
MULTIPLE: dict[Precision, int] = {"fp8": 16, "int8": 8}  # of both sizes, on CUDA
FP8_CAPABILITY = (8, 9)  # from which on CUDA multiplies FP8


def linear(in_features: int, out_features: int, precision: Precision = "full") -> nn.Linear:
    """Return a matrix without bias, of (out, in)."""
    if precision == "full":
        return nn.Linear(in_features, out_features, bias=False)
    return QuantisedLinear(in_features, out_features, precision)


def quantise_rows(
    x: Float[Tensor, "rows columns"], precision: Precision
) -> tuple[Tensor, Float[Tensor, "rows 1"]]:
    """Return (codes in 8 bits, float32 scales) with x close to codes * scales, row by row."""
    x = x.float()
    scales = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST[precision]
    codes = x / scales
    return (codes.round() if precision == "int8" else codes).to(CODES[precision]), scales


def dequantise(codes: Tensor, scales: Float[Tensor, "rows 1"]) -> Float[Tensor, "rows columns"]:
    """Return codes * scales, in float32."""
    return codes.float() * scales


def product(
    x: Float[Tensor, "tokens hidden"], codes: Tensor, scales: Float[Tensor, "out 1"]
) -> Float[Tensor, "tokens out"]:
    """Return x W^T with both sides in 8 bits, in the precision of x.

    Integers are multiplied as such, and FP8 is one scaled product, where the device has that
    (`multiplies`). Elsewhere the same numbers are multiplied in float32, no faster.
    """
    precision: Precision = "int8" if codes.dtype == torch.int8 else "fp8"
    values, token_scales = quantise_rows(x, precision)
    if not multiplies(codes):
        sums = values.float() @ codes.float().t()
    elif precision == "int8":
        missing = MIN_INT_MM_ROWS - len(values) if x.is_cuda else 0
        padded = F.pad(values, (0, 0, 0, missing)) if missing > 0 else values
        sums = torch._int_mm(padded, codes.t())[: len(values)].float()
    else:
        return torch._scaled_mm(
            values, codes.t(), scale_a=token_scales, scale_b=scales.t(), out_dtype=torch.bfloat16
        ).to(x.dtype)
    return (sums * token_scales * scales.t()).to(x.dtype)


def multiplies(codes: Tensor) -> bool:
    """Whether the device has a product in 8 bits for a matrix of these codes and this size."""
    is_int8 = codes.dtype == torch.int8
    if not codes.is_cuda:
        return is_int8 and multiplies_int8()
    is_able = is_int8 or torch.cuda.get_device_capability(codes.device) >= FP8_CAPABILITY
    multiple = MULTIPLE["int8" if is_int8 else "fp8"]
    return is_able and all(size % multiple == 0 for size in codes.shape)


class QuantisedLinear(nn.Linear):
    """A matrix without bias in 8 bits; its names are those of compressed-tensors."""

    weight: Tensor  # codes (out, in)
    weight_scale: Float[Tensor, "out 1"]

    def __init__(self, in_features: int, out_features: int, precision: Precision):
        nn.Module.__init__(self)  # the weight is no parameter
        self.in_features, self.out_features = in_features, out_features
        self.precision: Precision = precision
        codes = torch.zeros(out_features, in_features, dtype=CODES[precision])
        self.register_buffer("weight", codes)
        self.register_parameter("bias", None)
        self.register_buffer("weight_scale", torch.ones(out_features, 1))

    def forward(self, input: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens out"]:
        """Apply the matrix to every token."""
        rows = product(input.flatten(0, -2), self.weight, self.weight_scale)
        return rows.unflatten(0, input.shape[:-1])

    def _apply(self, fn, recurse: bool = True):
        """Follow to another device, but keep codes and scales in their precision."""
        device = fn(self.weight_scale).device
        self.weight, self.weight_scale = self.weight.to(device), self.weight_scale.to(device)
        return self
