"""What block distillation leaves on disk: a file a layer, and the errors on the way there."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fretsaw.checkpoint.shards import save_tensors
from fretsaw.puzzle.bld.nested import slices
from fretsaw.puzzle.library.slices import Trained
from fretsaw.stage.artifact import hash_path, read_output, verified
from fretsaw.stage.whole import replace_file, write_json

ERRORS = "bld.json"
SHARED = "shared"
SAME = ("parent", "ranking")  # inputs that must be those of whoever uses the weights


@dataclass
class LayerWeights:
    """A layer's trained weights as they are stored: what is shared, once."""

    own: dict[str, dict[str, Tensor]]  # alternative (or pair) -> parameter of its block
    shared: dict[str, Tensor]
    nested: list[str]  # the alternatives that also use what is shared
    kv_heads: int  # of the shared projections

    def by_name(self) -> Trained:
        """Return all that each alternative trains, by the names its block gives it."""
        return {
            name: own | (slices(self.shared, name, self.kv_heads) if name in self.nested else {})
            for name, own in self.own.items()
        }


def layer_file(folder: Path, layer: int) -> Path:
    """Return where a layer's trained tensors are."""
    return folder / f"layer-{layer:03d}.safetensors"


def write_trained(path: Path, weights: LayerWeights, dtype: torch.dtype) -> None:
    """Write a layer's own tensors by alternative, and once what the nested ones share."""
    named = {**weights.own, SHARED: weights.shared} if weights.nested else weights.own
    tensors = {
        f"{name}/{parameter}": tensor.detach().to("cpu", dtype).contiguous()
        for name, parameters in named.items()
        for parameter, tensor in parameters.items()
    }
    # One key: the order of several would differ from one run to the next.
    sharing = {"nested": weights.nested, "kv_heads": weights.kv_heads}
    with replace_file(path) as beside:
        save_tensors(tensors, beside, {SHARED: json.dumps(sharing)})


def read_trained(folder: Path, layer: int) -> Trained:
    """Read a layer's trained weights: alternative (or pair) -> parameter of its block -> tensor.

    What an alternative does not name is as `build_block` makes it. Tensors are float32.
    """
    path = layer_file(folder, layer)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the folder of a finished `fretsaw bld`")
    found: dict[str, dict[str, Tensor]] = {}
    with safe_open(verified(path), framework="pt") as file:
        sharing = json.loads(file.metadata()[SHARED])
        for key in file.keys():  # noqa: SIM118 (not a dict)
            name, parameter = key.split("/")
            found.setdefault(name, {})[parameter] = file.get_tensor(key).float()
    shared = found.pop(SHARED, {})
    return LayerWeights(found, shared, **sharing).by_name()


def write_errors(folder: Path, inputs: Mapping[str, Path], **content: Any) -> None:
    """Write `bld.json`, with the hashes of what the weights belong to."""
    made_of = {name: hash_path(inputs[name]) for name in SAME}
    write_json(folder / ERRORS, {"inputs": made_of, **content})


def check_trained(folder: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse weights that were trained for another parent or another order of its channels."""
    path = folder / ERRORS
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the folder of a finished `fretsaw bld`")
    made_of = read_output(folder, ERRORS, {"inputs": dict.fromkeys(SAME, str)})["inputs"]
    for name in SAME:
        if hash_path(inputs[name]) != made_of[name]:
            raise ValueError(
                f"{folder}: trained for another {name} than {inputs[name]}; run `fretsaw bld` again"
            )
