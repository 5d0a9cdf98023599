"""What an engine and a tensor-parallel degree refuse of a search table. Standard library only.

Applied to the table, so that every search obeys them. What exporting mends without loss is let
through: a parent's own width, and the narrow steps of small networks, which are padded with zeros.
Names that are not ours (`gqa4`, `ffn384`, `gqa4+ffn384`) are always taken.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fretsaw.checkpoint.export_targets import EXPORT_TARGETS
from fretsaw.model.config import without_precision
from fretsaw.model.kinds import KINDS
from fretsaw.puzzle.search.table import Alternative, Table
from fretsaw.puzzle.space import granularity

_SIZED = re.compile(r"(gqa|ffn)(\d+)(@\w+)?")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is taken of an alternative; the defaults are those of any engine we know."""

    engine: str = "an engine"  # for messages
    first_attention: bool = True
    ffns: bool = False  # every layer needs one
    linear: bool = True
    in_8_bits: bool = True
    width_multiple: int = 1
    pads: bool = True  # whether exporting pads widths with zeros
    tensor_parallel: int = 1

    def refusal(self, layer: int, name: str, own_width: int) -> str | None:
        """Say why a layer may not take an alternative, or None where it may."""
        if layer == 0 and self.first_attention and "attn_none" in name:
            return "no attention in the first layer"
        for part in name.split("+"):
            if self.ffns and part == "ffn_none":
                return "a layer without an FFN"
            if not self.linear and (kind := _strange(part)):
                return f"a {kind} subblock"
            if not self.in_8_bits and "@" in part:
                return "matrices in 8 bits"
            sized = _SIZED.fullmatch(part)
            if sized is None:
                continue
            kind, size = sized[1], int(sized[2])
            if size % self.tensor_parallel:
                what = "key-value heads" if kind == "gqa" else "FFN channels"
                return f"{size} {what} over {self.tensor_parallel} devices"
            is_own = self.pads and size == own_width
            if kind == "ffn" and not is_own and size % self._multiple(own_width):
                return f"an FFN {size} wide, no multiple of {self.width_multiple}"
        return None

    def _multiple(self, own_width: int) -> int:
        """Return what widths must be multiples of; a small network's own steps are let through."""
        small = granularity(own_width) if self.pads and own_width else self.width_multiple
        return min(self.width_multiple, small)


FIRST_ATTENTION = Rules()  # without it vLLM and llama.cpp crash
NO_RULES = Rules(first_attention=False)


def rules_of(engine: str, tensor_parallel: int = 1) -> Rules:
    """Return the rules of an export target. Raises `ValueError` for an unknown one."""
    if engine not in EXPORT_TARGETS:
        raise ValueError(f"engine {engine!r}: unknown; choose one of {', '.join(EXPORT_TARGETS)}")
    target = EXPORT_TARGETS[engine]
    return Rules(
        engine=engine,
        first_attention=target.needs_first_attention,
        ffns=target.needs_ffns,
        linear=target.linear != "refused",
        in_8_bits=target.takes_8_bits,
        width_multiple=target.width_multiple,
        pads=not target.keeps_layout,
        tensor_parallel=tensor_parallel,
    )


def taken(table: Table, rules: Rules) -> Table:
    """Return the table without what the rules refuse, and without the pairs of that.

    Raises `ValueError` where a subblock is left with nothing, with what was refused of it.
    """
    layers = []
    for i, layer in enumerate(table.layers):
        own_width = _own_width(layer.get("ffn") or layer.get("block") or {})
        kept: dict[str, dict[str, Alternative]] = {}
        for subblock, alternatives in layer.items():
            refusals = {name: rules.refusal(i, name, own_width) for name in alternatives}
            kept[subblock] = {n: a for n, a in alternatives.items() if refusals[n] is None}
            if not kept[subblock]:
                raise ValueError(
                    f"search: layer {i} has no {subblock} that {rules.engine} takes: it refuses "
                    + ", ".join(f"{name} ({why})" for name, why in refusals.items())
                    + f"; widen the space of layer {i}, or choose another engine or "
                    "tensor-parallel degree"
                )
        layers.append(kept)
    pairs = tuple(
        pair
        for pair in table.pairs
        if all(name in layers[i][table.subblock_of((i, name))[1]] for i, name in pair.choices)
    )
    return replace(table, layers=tuple(layers), pairs=pairs)


def _strange(part: str) -> str | None:
    """Return the kind of an alternative that not every engine of Llamas has, else None."""
    name = without_precision(part)
    return next((k.name for k in KINDS.values() if k.spelled == name and not k.is_llamas), None)


def _own_width(alternatives: Iterable[str]) -> int:
    """Return the FFN width of the first alternative, which is the parent's own; 0 for none."""
    first = next(iter(alternatives), "")
    widths = [int(found[2]) for found in _SIZED.finditer(first) if found[1] == "ffn"]
    return widths[0] if widths else 0
