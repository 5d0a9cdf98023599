"""LoRA's factors -> a folder that PEFT, and every command here, opens as an adapter on its base."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fretsaw.checkpoint import shards
from fretsaw.checkpoint.adapter import APPLIED, CONFIG, PREFIX, WEIGHTS
from fretsaw.stage.whole import write_json


def check_base(base: Path) -> None:
    """Raise where a checkpoint can't be named as an adapter's base: it is one with an adapter."""
    if (base / APPLIED).is_dir():
        raise ValueError(
            f"{base}: an adapter on its base, and an adapter on that would be read by nobody; make "
            f"a checkpoint of it with `fretsaw export`, or have the new one merged"
        )


def write_adapter(
    folder: Path, factors: Mapping[str, tuple[Tensor, Tensor]], *, base: Path, alpha: float
) -> None:
    """Write (rank, in) and (out, rank) factors by the names of their matrices, all of one rank.

    The base is named by its path from the folder, so that both can be moved together. Factors that
    are split over processes are gathered in order, the first of a matrix before the second.
    """
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in factors.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = shards.whole(down).cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = shards.whole(up).cpu().contiguous()
    [rank] = {down.shape[0] for down, _ in factors.values()}
    shards.save_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": os.path.relpath(base.resolve(), folder.resolve()),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in factors}),
        "inference_mode": True,
    }
    write_json(folder / CONFIG, config)
