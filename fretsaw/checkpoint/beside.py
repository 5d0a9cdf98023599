"""Beside the weights: where layers stand in the parent, and in what precisions they are served."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fretsaw.checkpoint.json_object import read_json
from fretsaw.model.config import BlockConfig
from fretsaw.model.kinds import Precision
from fretsaw.stage.whole import write_json

LAYERS, PRECISIONS = "layers.json", "precisions.json"


@dataclass(frozen=True)
class Layers:
    """Where the layers of a network stand that has fewer than the one it came from.

    Layer i gives what layer `after[i]` of that one gave, which had `of` layers.
    """

    of: int
    after: tuple[int, ...]


def read_layers(folder: Path) -> Layers | None:
    """Return where a checkpoint's layers stand, None where it has all of its parent's."""
    path = folder / LAYERS
    if not path.is_file():
        return None
    raw = read_json(path)
    return Layers(raw["of"], tuple(raw["after"]))


def write_layers(folder: Path, layers: Layers) -> None:
    """Say beside a checkpoint where its layers stand."""
    write_json(folder / LAYERS, {"of": layers.of, "after": list(layers.after)})


Precisions = tuple[tuple[Precision, Precision], ...]  # of every layer's attention and FFN


def read_precisions(folder: Path) -> Precisions | None:
    """Return in what a checkpoint's matrices are to be served, None where in full precision."""
    path = folder / PRECISIONS
    if not path.is_file():
        return None
    return tuple((attention, ffn) for attention, ffn in read_json(path)["layers"])


def write_precisions(folder: Path, blocks: Iterable[BlockConfig]) -> None:
    """Say beside a checkpoint in what its matrices are to be served, where not in full."""
    pairs = [[block.attention_precision, block.ffn_precision] for block in blocks]
    if any(pair != ["full", "full"] for pair in pairs):
        write_json(folder / PRECISIONS, {"layers": pairs})
