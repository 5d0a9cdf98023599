"""What kinds of attention and FFN there are: one row a kind. Standard library only.

A row says in closed form what planner, search and checkpoints need to know of a kind, and names the
module that computes it. A module has, beside `forward`: `build(config, size, precision)`;
`entering(x, context)`, what enters its last matrix; `output`, that matrix; and, where a parent's
plain Llama half can turn into it, `weights_from(half)`, its weights by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Half = Literal["attention", "ffn"]
Precision = Literal["full", "fp8", "int8"]  # of a subblock's matrices; full: the network's own
MatrixShapes = dict[str, tuple[int, int]]  # by the matrix's name: rows, columns

MODULES: dict[Half, str] = {"attention": "self_attn", "ffn": "mlp"}  # of a block
PRECISIONS: tuple[Precision, ...] = ("full", "fp8", "int8")


@runtime_checkable
class Widths(Protocol):
    """The sizes of a network that its subblocks share."""

    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def num_attention_heads(self) -> int: ...  # noqa: D102
    @property
    def head_dim(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class _Ones:
    """Widths of which only the names of matrices are asked."""

    hidden_size: int = 1
    num_attention_heads: int = 1
    head_dim: int = 1


@dataclass(frozen=True, kw_only=True)
class SubblockKind:
    """A kind of attention or FFN. `size` is a half's only one: key-value heads, or channels."""

    half: Half
    name: str  # in a `BlockConfig`
    spelled: str  # as an alternative; of a kind with a size what stands before it
    module: str  # "module:class"; "" for nothing at all
    matrices: Callable[[Widths, int], MatrixShapes]  # the last one writes to the residual stream
    kept: Callable[[Widths, int], int] = lambda w, size: 0
    """Numbers a token leaves for the backward, beside the normed input and logarithms."""
    has_size: bool = False
    has_cache: bool = False  # keys and values of every token, and scores between tokens
    is_llamas: bool = False  # any engine that serves Llamas has it
    option: str = ""  # the field of the search space that lets it in; "": it always is
    flag: str = ""  # what marks it in DeciLM's block_configs
    page: str = "model.md"  # its page in docs/

    def alternative(self, size: int) -> str:
        """Return the alternative's name in full precision."""
        return f"{self.spelled}{size}" if self.has_size else self.spelled

    @property
    def matrix_names(self) -> list[str]:
        """The names of its matrices, that of the output last."""
        return list(self.matrices(_Ones(), 1))

    @property
    def form(self) -> str:
        """How its alternatives are spelled."""
        size = "<kv>" if self.half == "attention" else "<width>"
        return self.spelled + size * self.has_size


def _attention(w: Widths, kv_heads: int) -> MatrixShapes:
    hidden, heads, kv = w.hidden_size, w.num_attention_heads * w.head_dim, kv_heads * w.head_dim
    return {
        "q_proj": (heads, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, heads),
    }


def _swiglu(w: Widths, width: int) -> MatrixShapes:
    inward, outward = (width, w.hidden_size), (w.hidden_size, width)
    return {"gate_proj": inward, "up_proj": inward, "down_proj": outward}


def _nothing(w: Widths, size: int) -> MatrixShapes:
    return {}


KINDS: dict[tuple[Half, str], SubblockKind] = {
    (kind.half, kind.name): kind
    for kind in (
        SubblockKind(
            half="attention",
            name="gqa",
            spelled="gqa",
            module="fretsaw.model.attention:GroupedQueryAttention",
            matrices=_attention,
            # rotated queries and keys, values, output
            kept=lambda w, kv_heads: 2 * (w.num_attention_heads + kv_heads) * w.head_dim,
            has_size=True,
            has_cache=True,
            is_llamas=True,
        ),
        SubblockKind(
            half="attention",
            name="linear",
            spelled="attn_linear",
            module="fretsaw.model.attention:LinearMixer",
            matrices=lambda w, size: {"linear_attn": (w.hidden_size, w.hidden_size)},
            option="linear",
            flag="replace_with_linear",
        ),
        SubblockKind(
            half="attention",
            name="none",
            spelled="attn_none",
            module="",
            matrices=_nothing,
            is_llamas=True,
            option="none",
            flag="no_op",
        ),
        SubblockKind(
            half="ffn",
            name="swiglu",
            spelled="ffn",
            module="fretsaw.model.ffn:SwiGLU",
            matrices=_swiglu,
            kept=lambda w, width: 4 * width,  # gate, its SiLU, up, their product
            has_size=True,
            is_llamas=True,
        ),
        SubblockKind(
            half="ffn",
            name="linear",
            spelled="ffn_linear",
            module="fretsaw.model.ffn:LinearFfn",
            matrices=lambda w, size: {"linear_mlp": (w.hidden_size, w.hidden_size)},
            option="linear",
            flag="replace_with_linear",
        ),
        SubblockKind(
            half="ffn",
            name="none",
            spelled="ffn_none",
            module="",
            matrices=_nothing,
            is_llamas=True,
            option="none",
            flag="no_op",
        ),
    )
}


def kinds_of(half: Half) -> list[SubblockKind]:
    """Return the kinds of a half, the plain Llama's first."""
    return [kind for kind in KINDS.values() if kind.half == half]


def parse_alternative(half: Half, text: str) -> tuple[SubblockKind, int, Precision]:
    """Return kind, size and precision of an alternative such as `gqa4`, `ffn384@fp8`, `attn_none`.

    Raises `ValueError` for a name that is none of the half's.
    """
    name, at, precision = text.partition("@")
    for kind in kinds_of(half):
        size = name.removeprefix(kind.spelled)
        is_meant = name != size and (size.isdecimal() if kind.has_size else not size)
        if is_meant and (not at or (kind.module and precision in PRECISIONS[1:])):
            return kind, int(size or 0), precision or "full"  # type: ignore[return-value]
    what = "attention" if half == "attention" else "FFN"
    forms = [kind.form for kind in kinds_of(half)]
    raise ValueError(
        f"{text!r} names no {what}; use {', '.join(forms[:-1])} or {forms[-1]}; @fp8 or @int8 may "
        "follow where there is something to store"
    )


def half_of(alternative: str) -> Half:
    """Return which half of a block an alternative is for."""
    return "ffn" if alternative.startswith("ffn") else "attention"
