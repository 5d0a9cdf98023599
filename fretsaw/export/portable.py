"""The same function in other layers: what a target can't express is rewritten exactly.

A network is a sequence of residual subblocks, and layers only group them: an attention, then an
FFN. So the subblocks are laid out anew, in as few layers as hold them, which drops layers that do
nothing; then what the target insists on is added as zeros. Weights are shared with the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fretsaw.checkpoint.export_targets import ExportTarget, refuse_inexpressible
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.kinds import Precision
from fretsaw.model.without_storage import without_storage

ATTENTION_NORM, FFN_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
LINEAR_ATTENTION, LINEAR_FFN = "self_attn.linear_attn.weight", "mlp.linear_mlp.weight"


@dataclass(frozen=True)
class PortableHalf:
    """One residual subblock: what it is and its weights, by their names within a layer."""

    slot: Literal["attention", "ffn"]
    kind: str  # of `model/kinds.py`
    size: int  # key-value heads of a gqa, width of a swiglu, else 0
    weights: dict[str, Tensor]
    precision: Precision = "full"


LayerHalves = tuple[PortableHalf | None, PortableHalf | None]  # a layer: its attention, its FFN


@torch.no_grad()
def rewrite(
    decoder: Decoder, target: ExportTarget, *, width_multiple: int = 1
) -> tuple[Decoder, list[str]]:
    """Return an equal decoder that the target takes, and one line for each change.

    FFN widths become multiples of `width_multiple`, and where layers differ also of the target's
    own. Raises ValueError, naming layer and remedy, where no rewriting is exact.
    """
    config, notes = decoder.config, []
    refuse_inexpressible(config, target)
    if target.keeps_layout:
        return decoder, notes
    subblocks = subblocks_of(decoder)
    if target.linear == "as_attention":
        subblocks = linear_ffns_as_attention(subblocks, notes)
    layers = repacked(subblocks, config, notes)
    if target.needs_first_attention:
        layers = with_first_attention(layers, config, notes)
    if target.needs_ffns:
        layers = with_ffns(layers, config, target.width_multiple, notes)
    if not _is_homogeneous(layers):
        width_multiple = max(width_multiple, target.width_multiple)
    layers = with_padded_widths(layers, width_multiple, notes)
    return _decoder(decoder, layers), notes


# --- the steps ------------------------------------------------------------------------------------


def subblocks_of(decoder: Decoder) -> list[PortableHalf]:
    """Return what the layers hold, in the order in which it is added to the hidden state."""
    found = []
    for block, module in zip(decoder.config.blocks, decoder.model.layers, strict=True):
        weights = module.state_dict()
        of_ffn = {n: w for n, w in weights.items() if n.startswith(("mlp.", FFN_NORM))}
        of_attention = {n: w for n, w in weights.items() if n not in of_ffn}
        if block.attention != "none":
            heads = block.num_key_value_heads
            precision = block.attention_precision
            found.append(PortableHalf("attention", block.attention, heads, of_attention, precision))
        if block.ffn != "none":
            width, precision = block.intermediate_size, block.ffn_precision
            found.append(PortableHalf("ffn", block.ffn, width, of_ffn, precision))
    return found


def linear_ffns_as_attention(
    subblocks: Sequence[PortableHalf], notes: list[str]
) -> list[PortableHalf]:
    """Put every linear FFN where a linear attention would stand: both are norm, then matrix."""
    names = {FFN_NORM: ATTENTION_NORM, LINEAR_FFN: LINEAR_ATTENTION}
    moved = [
        PortableHalf("attention", "linear", 0, {names[n]: w for n, w in subblock.weights.items()})
        if (subblock.slot, subblock.kind) == ("ffn", "linear")
        else subblock
        for subblock in subblocks
    ]
    num_moved = sum(new is not old for new, old in zip(moved, subblocks, strict=True))
    if num_moved:
        notes.append(f"{num_moved} linear FFNs put in an attention's place, a layer further on")
    return moved


def repacked(
    subblocks: Sequence[PortableHalf], config: ModelConfig, notes: list[str]
) -> list[LayerHalves]:
    """Lay the subblocks out in as few layers as hold them in this order."""
    layers: list[LayerHalves] = []
    for subblock in subblocks:
        if subblock.slot == "attention":
            layers.append((subblock, None))
        elif layers and layers[-1][1] is None:
            layers[-1] = (layers[-1][0], subblock)
        else:
            layers.append((None, subblock))
    num_empty = sum(b.attention == "none" and b.ffn == "none" for b in config.blocks)
    if num_empty or len(layers) != config.num_hidden_layers:
        idle = f", {num_empty} of which did nothing," if num_empty else ""
        notes.append(f"{config.num_hidden_layers} layers{idle} laid out as {len(layers)}")
    return layers or [(None, None)]


def with_first_attention(
    layers: Sequence[LayerHalves], config: ModelConfig, notes: list[str]
) -> list[LayerHalves]:
    """Give layer 0 an attention that adds nothing, where it has none."""
    if layers[0][0] is not None:
        return list(layers)
    notes.append("layer 0 given an attention of zeros, with 1 key-value head")
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    shapes = {
        "q": (heads, hidden),
        "k": (config.head_dim, hidden),
        "v": (config.head_dim, hidden),
        "o": (hidden, heads),
    }
    weights = {f"self_attn.{n}_proj.weight": torch.zeros(shape) for n, shape in shapes.items()}
    weights[ATTENTION_NORM] = torch.ones(hidden)
    return [(PortableHalf("attention", "gqa", 1, weights), layers[0][1]), *layers[1:]]


def with_ffns(
    layers: Sequence[LayerHalves], config: ModelConfig, width: int, notes: list[str]
) -> list[LayerHalves]:
    """Give every layer without an FFN one that adds nothing."""
    without = [i for i, (_, ffn) in enumerate(layers) if ffn is None]
    if without:
        notes.append(f"{_named(without)} given an FFN of zeros, {width} wide")
    return [(attention, ffn or _zero_ffn(config.hidden_size, width)) for attention, ffn in layers]


def _zero_ffn(hidden: int, width: int) -> PortableHalf:
    weights = {FFN_NORM: torch.ones(hidden), "mlp.down_proj.weight": torch.zeros(hidden, width)}
    weights |= {f"mlp.{name}_proj.weight": torch.zeros(width, hidden) for name in ("gate", "up")}
    return PortableHalf("ffn", "swiglu", width, weights)


def with_padded_widths(
    layers: Sequence[LayerHalves], multiple: int, notes: list[str]
) -> list[LayerHalves]:
    """Widen FFNs to a multiple, with channels of zeros."""
    padded = [(attention, _padded(ffn, multiple)) for attention, ffn in layers]
    changed = [
        i for i, (new, old) in enumerate(zip(padded, layers, strict=True)) if new[1] is not old[1]
    ]
    if changed:
        notes.append(f"{_named(changed)} widened with zeros, FFNs to multiples of {multiple}")
    return padded


def _padded(ffn: PortableHalf | None, multiple: int) -> PortableHalf | None:
    if ffn is None or ffn.kind != "swiglu" or ffn.size % multiple == 0:
        return ffn
    more = -ffn.size % multiple
    weights = {name: _widened(name, weight, more) for name, weight in ffn.weights.items()}
    return replace(ffn, size=ffn.size + more, weights=weights)


def _widened(name: str, weight: Tensor, more: int) -> Tensor:
    """Return one of a SwiGLU's tensors with `more` channels of zeros; its norm has none."""
    is_down, is_scale = "down" in name, name.endswith("scale")
    if not name.startswith("mlp.") or (is_down and is_scale):
        return weight
    if is_scale:
        return F.pad(weight, (0, 0, 0, more), value=1.0)
    bits = weight.view(torch.uint8) if weight.dtype == torch.float8_e4m3fn else weight
    return F.pad(bits, (0, more) if is_down else (0, 0, 0, more)).view(weight.dtype)


def _named(layers: Sequence[int]) -> str:
    numbers = ", ".join(map(str, layers))
    return f"layer {numbers}" if len(layers) == 1 else f"layers {numbers}"


# --- back to a decoder ----------------------------------------------------------------------------


def _decoder(source: Decoder, layers: Sequence[LayerHalves]) -> Decoder:
    config = replace(source.config, blocks=tuple(_block(*pair) for pair in layers))
    with without_storage():
        decoder = Decoder(config)
    kept = source.state_dict()
    weights = {name: w for name, w in kept.items() if not name.startswith("model.layers.")}
    embeddings = kept["model.embed_tokens.weight"]
    for i, pair in enumerate(layers):
        for subblock in pair:
            for name, weight in subblock.weights.items() if subblock else ():
                is_kept = weight.itemsize == 1 or name.endswith("scale")
                weights[f"model.layers.{i}.{name}"] = weight if is_kept else weight.to(embeddings)
    decoder.load_state_dict(weights, assign=True)
    return decoder.requires_grad_(False)


def _block(attention: PortableHalf | None, ffn: PortableHalf | None) -> BlockConfig:
    fields: dict = {"attention": "none", "ffn": "none"}
    if attention is not None:
        fields |= {"attention": attention.kind, "num_key_value_heads": attention.size}
        fields |= {"attention_precision": attention.precision}
    if ffn is not None:
        fields |= {"ffn": ffn.kind, "intermediate_size": ffn.size}
        fields |= {"ffn_precision": ffn.precision}
    return BlockConfig(**fields)


def _is_homogeneous(layers: Sequence[LayerHalves]) -> bool:
    blocks = {_block(*pair).stored("full", "full") for pair in layers}
    first = next(iter(blocks))
    return len(blocks) == 1 and first.attention == "gqa" and first.ffn == "swiglu"
