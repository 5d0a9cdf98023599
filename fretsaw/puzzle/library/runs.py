"""Which FFNs of a network can be fused, and into what: groups of layers and their shapes.

A run is a row of FFNs with no attention between them; its first layer may keep its attention, for
that comes before the FFNs. A group is a part of a run that becomes one FFN. No torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.place import Place


@dataclass(frozen=True, order=True)
class Group:
    """Neighbouring layers whose FFNs become one, by the numbers of the first and the last."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "Group":
        """Read "42-50". Raises `ValueError`."""
        found = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
        if found is None:
            raise ValueError(f"group {text!r}: write the first and the last layer, as in 42-50")
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise ValueError(f"group {text!r}: the first layer comes first; write {last}-{first}")
        return cls(first, last)

    @property
    def layers(self) -> range:
        """The layers, first to last."""
        return range(self.first, self.last + 1)

    @property
    def start(self) -> Place:
        """Where the first of its FFNs stands."""
        return Place(self.first, "ffn")

    @property
    def num_subblocks(self) -> int:
        """How many subblocks become one: its FFNs and what is between them."""
        return 2 * len(self.layers) - 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def find_runs(blocks: Sequence[BlockConfig]) -> list[list[int]]:
    """Return the layers of every run of two FFNs or more of one kind with no attention between.

    Layers without any subblock don't end a run, and don't belong to it.
    """
    runs: list[list[int]] = []
    for i, block in enumerate(blocks):
        is_open = bool(runs) and block.attention == "none"
        if block.ffn == "none":
            if not is_open:
                runs.append([])  # an attention ends the run before it
        elif is_open and runs[-1] and blocks[runs[-1][-1]].ffn == block.ffn:
            runs[-1].append(i)
        else:
            runs.append([i])
    return [run for run in runs if len(run) > 1]


def members(blocks: Sequence[BlockConfig], group: Group) -> list[int]:
    """Return the group's layers that have an FFN.

    Raises `ValueError` where there are not two, or they are not part of one run.
    """
    if group.last >= len(blocks):
        raise ValueError(f"group {group}: the model has layers 0 to {len(blocks) - 1}")
    found = [i for i in group.layers if blocks[i].ffn != "none"]
    if len(found) < 2:
        raise ValueError(
            f"group {group}: {len(found)} FFN, and fusing takes two at least; name more layers"
        )
    for i in range(found[0] + 1, found[-1] + 1):
        if blocks[i].attention != "none":
            raise ValueError(
                f"group {group}: layer {i} has an attention between the FFNs ("
                f"{blocks[i].attention_name}), which needs what the earlier ones write; end the "
                "group before it"
            )
        if blocks[i].ffn not in ("none", blocks[found[0]].ffn):
            raise ValueError(
                f"group {group}: layer {i} has an {blocks[i].ffn_name}, layer {found[0]} an "
                f"{blocks[found[0]].ffn_name}; a single matrix and a SwiGLU do not fuse"
            )
    return found


def fused_shape(blocks: Sequence[BlockConfig], group: Group) -> BlockConfig:
    """Return the block that stands for the group: the first attention, the widths' sum.

    It is in 8 bits where all its FFNs are, and alike.
    """
    found = members(blocks, group)
    precisions = {blocks[i].ffn_precision for i in found}
    return replace(
        blocks[found[0]],
        intermediate_size=fused_width(blocks, group),
        ffn_precision=precisions.pop() if len(precisions) == 1 else "full",
    )


def fused_width(blocks: Sequence[BlockConfig], group: Group) -> int:
    """Return the width of the group's FFNs together, whatever attention is between them."""
    return sum(blocks[i].intermediate_size for i in group.layers)


def layers_of(num_layers: int, groups: Sequence[Group], *, keeps_layers: bool) -> list[int]:
    """Return for every layer of the fused model the layer after which the old one stood there.

    A fused FFN gives what the last layer of its group gave. With `keeps_layers` the freed layers
    stay, empty.
    """
    last = {i: group.last for group in groups for i in group.layers}
    left = range(num_layers) if keeps_layers else layers_left(num_layers, groups)
    return [last.get(i, i) for i in left]


def layers_left(num_layers: int, groups: Sequence[Group]) -> list[int]:
    """Return the layers that are there still when those that fusing frees are dropped."""
    freed = {i for group in groups for i in group.layers[1:]}
    return [i for i in range(num_layers) if i not in freed]


def fused_config(
    config: ModelConfig, groups: Sequence[Group], *, keeps_layers: bool = False
) -> ModelConfig:
    """Return the architecture with the FFNs of every group in its first layer.

    Raises `ValueError` for groups that overlap or can't be fused.
    """
    check_groups(config.blocks, groups)
    blocks: list[BlockConfig] = []
    shapes = {group.first: fused_shape(config.blocks, group) for group in groups}
    freed = {i for group in groups for i in group.layers} - set(shapes)
    for i, block in enumerate(config.blocks):
        if i not in freed:
            blocks.append(shapes.get(i, block))
        elif keeps_layers:
            blocks.append(BlockConfig(attention="none", ffn="none"))
    return replace(config, blocks=tuple(blocks))


def check_groups(blocks: Sequence[BlockConfig], groups: Sequence[Group]) -> None:
    """Raise `ValueError` for groups that overlap, can't be fused, or end without an FFN."""
    taken: dict[int, Group] = {}
    for group in groups:
        found = members(blocks, group)
        if (found[0], found[-1]) != (group.first, group.last):
            raise ValueError(
                f"group {group}: its first and last layer must have FFNs; name {found[0]}-"
                f"{found[-1]}"
            )
        for i in group.layers:
            if i in taken:
                raise ValueError(f"groups {taken[i]} and {group} both have layer {i}")
            taken[i] = group
