"""The search space: which alternatives each subblock of a parent has. Standard library only.

Puzzle's (arXiv 2411.19146): attention with fewer key-value heads, a single matrix, or nothing; an
FFN of less width, a single matrix, or nothing; each of them in 8 bits too, if wanted. A subblock's
own shape always comes first.
"""

from fretsaw.model.config import BlockConfig, ModelConfig, in_precision
from fretsaw.model.kinds import Precision, SubblockKind, kinds_of
from fretsaw.puzzle.settings import SpaceSettings


def layer_alternatives(
    block: BlockConfig, space: SpaceSettings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the attention and FFN alternatives of one parent block, its own first.

    Raises `ValueError` for key-value heads that do not divide the parent's.
    """
    attention = [block.attention_name, *(f"gqa{n}" for n in _kv_heads(block, space))]
    ffn = [block.ffn_name, *(f"ffn{width}" for width in _widths(block, space))]
    attention += _other_kinds(block.attention_kind, space)
    ffn += _other_kinds(block.ffn_kind, space)
    precisions: tuple[Precision, ...] = ("full", *space.precisions)

    def stored(names: list[str]) -> tuple[str, ...]:
        return tuple(
            in_precision(name, precision)
            for name in names
            for precision in (precisions if not name.endswith("_none") else precisions[:1])
        )

    return stored(attention), stored(ffn)


def _other_kinds(own: SubblockKind, space: SpaceSettings) -> list[str]:
    """Return what can stand in a half's place, as far as the space lets it in."""
    return [
        kind.alternative(0)
        for kind in kinds_of(own.half)
        if not kind.has_size
        if not kind.option or getattr(space, kind.option)
        if _can_become(own, kind)
    ]


def _can_become(own: SubblockKind, kind: SubblockKind) -> bool:
    """Whether a parent's half can turn into a kind: any into nothing, a Llama's into all."""
    is_there = bool(own.module)
    return is_there and (own.is_llamas or not kind.module)


def default_alternatives(
    config: ModelConfig, space: SpaceSettings | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the alternatives of any layer of a plain Llama, the parent's own first.

    Raises `ValueError` for a parent with unequal layers.
    """
    if not config.is_homogeneous:
        raise ValueError(
            "alternatives: the parent's layers differ, and this takes a plain Llama; give the "
            "network it was made from"
        )
    return layer_alternatives(config.blocks[0], space or SpaceSettings())


def _kv_heads(block: BlockConfig, space: SpaceSettings) -> list[int]:
    own = block.num_key_value_heads
    if not block.attention_kind.has_size:
        return []
    for heads in space.kv_heads:
        if own % heads:
            raise ValueError(
                f"space: kv_heads {heads} does not divide the parent's {own} key-value heads; "
                f"choose of {', '.join(str(n) for n in range(1, own + 1) if own % n == 0)}"
            )
    wanted = space.kv_heads or tuple(n for n in range(1, own) if own % n == 0)
    return sorted({n for n in wanted if n < own}, reverse=True)


def _widths(block: BlockConfig, space: SpaceSettings) -> list[int]:
    own = block.intermediate_size
    step = granularity(own)
    rounded = (
        max(step, round(own * percent / 100 / step) * step) for percent in space.ffn_percents
    )
    return sorted({width for width in rounded if width < own}, reverse=True)


def granularity(own_width: int) -> int:
    """Return what the widths below a parent's own are multiples of."""
    return 256 if own_width >= 2048 else 16 if own_width >= 256 else 8
