"""A decoder's weights as decoding wants them: few large matrices instead of many small ones.

What reads the same input is one matrix: queries, keys and values; gate and up. On a CPU matrices
are packed. They may be in 8 bits: as the decoder stores them, or all of them cast to FP8.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fretsaw.model.attention import GroupedQueryAttention
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.ffn import SwiGLU
from fretsaw.model.linear import QuantisedLinear, multiplies, product, quantise_rows

PACKED_ROWS = 64  # what the packing is told to expect; it then serves any number well


class Matrix:
    """A weight of (out, in) that maps rows; it shares no memory with what it was made of.

    On a CPU in float32 it is packed for oneDNN, which multiplies few rows up to twice as fast as
    the plain kernel does.
    """

    def __init__(self, *weights: Float[Tensor, "_ hidden"]):
        self.weight = torch.cat([w.detach() for w in weights])
        is_cpu = self.weight.device.type == "cpu" and self.weight.dtype == torch.float32
        self.is_packed = is_cpu and torch.backends.mkldnn.is_available()
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACKED_ROWS)

    def __call__(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens out"]:
        """Return x W^T."""
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return F.linear(x, self.weight)

    def add_to(
        self, x: Float[Tensor, "tokens out"], y: Float[Tensor, "tokens hidden"]
    ) -> Float[Tensor, "tokens out"]:
        """Return x + y W^T."""
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise.binary(y, x, self.weight, None, "add")
        return torch.addmm(x, y, self.weight.t())


class QuantisedMatrix:
    """A weight of (out, in) in 8 bits that maps rows of tokens."""

    def __init__(self, codes: Tensor, scales: Float[Tensor, "out 1"]):
        self.codes, self.scales = codes, scales

    def __call__(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens out"]:
        """Return x W^T."""
        return product(x, self.codes, self.scales)

    def add_to(
        self, x: Float[Tensor, "tokens out"], y: Float[Tensor, "tokens hidden"]
    ) -> Float[Tensor, "tokens out"]:
        """Return x + y W^T."""
        return x + self(y)


class FloatCodesMatrix:
    """A weight of (out, in) in int8 for a CPU that multiplies floats faster than integers.

    Its codes are kept as floats, which takes four times the memory: to turn them at every call
    would take longer than the product.
    """

    def __init__(self, codes: Tensor, scales: Float[Tensor, "out 1"]):
        self.codes, self.scales = Matrix(codes.float()), scales

    def __call__(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens out"]:
        """Return x W^T."""
        values, token_scales = quantise_rows(x, "int8")
        return (self.codes(values.float()) * token_scales * self.scales.t()).to(x.dtype)

    def add_to(
        self, x: Float[Tensor, "tokens out"], y: Float[Tensor, "tokens hidden"]
    ) -> Float[Tensor, "tokens out"]:
        """Return x + y W^T."""
        return x + self(y)


AnyMatrix = Matrix | QuantisedMatrix | FloatCodesMatrix


def matrix_in_8_bits(codes: Tensor, scales: Float[Tensor, "out 1"]) -> AnyMatrix:
    """Return a weight in 8 bits as the device multiplies it."""
    is_cpu_int8 = codes.device.type == "cpu" and codes.dtype == torch.int8
    kind = FloatCodesMatrix if is_cpu_int8 and not multiplies(codes) else QuantisedMatrix
    return kind(codes, scales)


@dataclass(frozen=True)
class AttentionWeights:
    """Grouped-query attention."""

    norm: Float[Tensor, " hidden"]
    qkv: AnyMatrix  # queries, then keys, then values
    out: AnyMatrix


@dataclass(frozen=True)
class FfnWeights:
    """SwiGLU."""

    norm: Float[Tensor, " hidden"]
    gate_up: AnyMatrix  # gate, then up
    down: AnyMatrix


@dataclass(frozen=True)
class PointwiseWeights:
    """Any other kind of either half: what it makes of a token depends on that token alone."""

    norm: Float[Tensor, " hidden"]
    entering: Callable[[Tensor, None], Tensor]  # from the normed input to what enters the output
    out: AnyMatrix


@dataclass(frozen=True)
class Weights:
    """All of a decoder; embeddings and norms are its own tensors, the matrices copies.

    A layer's halves are None where it has none.
    """

    embed: Float[Tensor, "vocab hidden"]
    attention: tuple[AttentionWeights | PointwiseWeights | None, ...]
    ffn: tuple[FfnWeights | PointwiseWeights | None, ...]
    norm: Float[Tensor, " hidden"]
    head: AnyMatrix


def prepare(decoder: Decoder, *, fp8: bool = False) -> Weights:
    """Return the decoder's weights as they are now, laid out for decoding.

    With `fp8` the blocks' matrices are cast to FP8 but for those that are in 8 bits already.
    """
    blocks = [block for block in decoder.model.layers if isinstance(block, Block)]
    return Weights(
        embed=decoder.model.embed_tokens.weight.detach(),
        attention=tuple(_attention(block, fp8) for block in blocks),
        ffn=tuple(_ffn(block, fp8) for block in blocks),
        norm=decoder.model.norm.weight.detach(),
        head=Matrix(decoder.head_weight),
    )


def _attention(block: Block, fp8: bool) -> AttentionWeights | PointwiseWeights | None:
    if not block.has_attention:
        return None
    norm, attention = block.input_layernorm.weight.detach(), block.self_attn
    if not isinstance(attention, GroupedQueryAttention):
        return PointwiseWeights(norm, attention.entering, _matrix(fp8, attention.output))
    qkv = _matrix(fp8, attention.q_proj, attention.k_proj, attention.v_proj)
    return AttentionWeights(norm, qkv, _matrix(fp8, attention.o_proj))


def _ffn(block: Block, fp8: bool) -> FfnWeights | PointwiseWeights | None:
    if not block.has_ffn:
        return None
    norm, ffn = block.post_attention_layernorm.weight.detach(), block.mlp
    if not isinstance(ffn, SwiGLU):
        return PointwiseWeights(norm, ffn.entering, _matrix(fp8, ffn.output))
    return FfnWeights(norm, _matrix(fp8, ffn.gate_proj, ffn.up_proj), _matrix(fp8, ffn.down_proj))


def _matrix(fp8: bool, *modules: nn.Module) -> AnyMatrix:
    """Return matrices that read the same input as one."""
    quantised = [module for module in modules if isinstance(module, QuantisedLinear)]
    if quantised:
        codes = torch.cat([module.weight for module in quantised])
        return matrix_in_8_bits(codes, torch.cat([module.weight_scale for module in quantised]))
    weights = [module.weight for module in modules if isinstance(module.weight, Tensor)]
    if fp8:
        return matrix_in_8_bits(*quantise_rows(torch.cat([w.detach() for w in weights]), "fp8"))
    return Matrix(*weights)
