"""All sizes of a layer's subblocks in one set of matrices, and whole blocks side by side.

A narrower FFN takes the first rows of shared `gate_proj` and `up_proj`; fewer key-value heads are
means of shared ones; all take the shared `q_proj`. The output matrix (`down_proj`, `o_proj`, or the
single matrix of a linear subblock) is every alternative's own. The norms stay the parent's: their
weight is a factor on the columns that are trained.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from fretsaw.model.attention import AttentionContext, GroupedQueryAttention
from fretsaw.model.decoder import Block
from fretsaw.model.ffn import SwiGLU
from fretsaw.model.kinds import MODULES, half_of, parse_alternative
from fretsaw.puzzle.library.slices import pool_heads
from fretsaw.training.losses import normalised_mse


def num_units(name: str) -> int:
    """Return the key-value heads of `gqa4`, the width of `ffn384`, 0 for what has no size."""
    return parse_alternative(half_of(name), name)[1]


def output_name(name: str) -> str:
    """Return the parameter that is an alternative's own: its last matrix."""
    half = half_of(name)
    kind, _, _ = parse_alternative(half, name)
    return f"{MODULES[half]}.{kind.matrix_names[-1]}.weight"


def slices(shared: Mapping[str, Tensor], name: str, kv_heads: int) -> dict[str, Tensor]:
    """Return an alternative's part of the shared matrices, by the names its block gives them.

    Views and means, so that a gradient reaches what is shared. `kv_heads` are those of the shared
    projections.
    """
    size = num_units(name)
    if not size:
        return {}
    if half_of(name) == "ffn":
        return {f"mlp.{n}.weight": shared[n][:size] for n in ("gate_proj", "up_proj")}
    pooled = {n: pool_heads(shared[n], kv_heads, size) for n in ("k_proj", "v_proj")}
    return {f"self_attn.{n}.weight": w for n, w in {"q_proj": shared["q_proj"], **pooled}.items()}


class Nested(nn.Module):
    """The trainable alternatives of one layer: what they share, and what is each one's own."""

    def __init__(self, parent: Block, alternatives: Mapping[str, Block]):
        """Share the parent's matrices; own are the alternatives' output matrices as they are."""
        super().__init__()
        self.kv_heads = 0
        shared: dict[str, Tensor] = {}
        attentions = [name for name in alternatives if name.startswith("gqa")]
        widths = [num_units(name) for name in alternatives if half_of(name) == "ffn"]
        if attentions:
            assert isinstance(parent.self_attn, GroupedQueryAttention)
            self.kv_heads = parent.self_attn.num_key_value_heads
            projections = ("q_proj", "k_proj", "v_proj")
            shared |= {n: parent.self_attn.get_parameter(f"{n}.weight") for n in projections}
        if max(widths, default=0):
            assert isinstance(parent.mlp, SwiGLU)
            shared |= {
                n: parent.mlp.get_parameter(f"{n}.weight")[: max(widths)]
                for n in ("gate_proj", "up_proj")
            }
        self.shared = nn.ParameterDict(
            {n: nn.Parameter(w.detach().clone()) for n, w in shared.items()}
        )
        self.own = nn.ParameterDict(
            {
                name: nn.Parameter(block.get_parameter(output_name(name)).detach().clone())
                for name, block in alternatives.items()
            }
        )
        # Only their shapes are used; in a plain dict, they are no modules of this one.
        self._halves: dict[str, Any] = {
            name: block.get_submodule(MODULES[half_of(name)])
            for name, block in alternatives.items()
        }

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return all that is trained of an alternative, by the names its block gives it."""
        return {
            **slices(dict(self.shared.items()), name, self.kv_heads),
            output_name(name): self.own[name],
        }

    def attention(
        self, x: Float[Tensor, "batch seq hidden"], context: AttentionContext, names: Iterable[str]
    ) -> dict[str, Float[Tensor, "batch seq hidden"]]:
        """Return what each named attention adds to the residual stream; `x` is normed."""
        added = {}
        for name in names:
            tensors = {n.partition(".")[2]: w for n, w in self.tensors(name).items()}
            added[name] = functional_call(self._halves[name], tensors, (x, context))
        return added

    def ffn(
        self, x: Float[Tensor, "batch seq hidden"], names: Iterable[str]
    ) -> dict[str, Float[Tensor, "batch seq hidden"]]:
        """Return what each named FFN adds; the widest one's activations serve all; `x` is normed.

        So all widths together cost less than two of the widest.
        """
        width = max(map(num_units, names), default=0)
        if width:
            gate, up = (self.shared[n][:width] for n in ("gate_proj", "up_proj"))
            activations = F.silu(F.linear(x, gate)) * F.linear(x, up)
        return {
            name: F.linear(
                activations[..., :size]
                if (size := num_units(name))
                else self._halves[name].entering(x, None),
                self.own[name],
            )
            for name in names
        }

    def losses(
        self,
        parent: Block,
        x: Float[Tensor, "batch seq hidden"],
        context: AttentionContext,
        names: Iterable[str],
        *,
        through_ffn: bool,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return each named alternative's normalised error, in the parent's block, from its state.

        An attention's is that of the state after it, or after the parent's FFN with `through_ffn`.
        """
        with torch.no_grad():
            after = parent.attend(x, context)
            wanted = parent.feed(after)
        ffns = [name for name in names if half_of(name) == "ffn"]
        attentions = [name for name in names if name not in ffns]
        losses = {}
        if attentions:
            normed = parent.input_layernorm(x)
            for name, added in self.attention(normed, context, attentions).items():
                losses[name] = (
                    normalised_mse(parent.feed(x + added), wanted)
                    if through_ffn
                    else normalised_mse(x + added, after)
                )
        if ffns:
            for name, added in self.ffn(parent.post_attention_layernorm(after), ffns).items():
                losses[name] = normalised_mse(after + added, wanted)
        return losses


class Pairs(nn.Module):
    """Whole blocks, trained side by side with nothing shared; their norms stay as they are."""

    def __init__(self, blocks: Mapping[str, Block]):
        super().__init__()
        self.blocks = nn.ModuleDict(dict(blocks))
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.ndim == 2)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return all that is trained of a pair, by the names its block gives it."""
        return {n: p for n, p in self.blocks[name].named_parameters() if p.ndim == 2}

    def losses(
        self,
        parent: Block,
        x: Float[Tensor, "batch seq hidden"],
        context: AttentionContext,
        names: Iterable[str],
        *,
        through_ffn: bool,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return each named block's normalised error from the parent's state."""
        assert through_ffn, "a pair is a whole block"
        with torch.no_grad():
            wanted = parent(x, context)
        return {name: normalised_mse(self.blocks[name](x, context), wanted) for name in names}
