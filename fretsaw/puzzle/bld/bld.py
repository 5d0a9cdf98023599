"""The bld stage: block distillation, every layer's alternatives trained on the parent's own states.

Puzzle's blockwise local distillation (arXiv 2411.19146, section 3) with loss MSE(o_p, o_c) /
MSE(o_p, 0) of block outputs. First decoupled, each alternative beside the parent's other half, and
nested: all sizes of a layer in one run. Then, on what a search has chosen, coupled: attention and
FFN of a layer together. A layer is a task of its own: a pure function of (parent, text, settings).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.llama import DTYPE_NAMES
from fretsaw.distributed.fanout import fan_out
from fretsaw.distributed.task import Tell
from fretsaw.puzzle.bld.candidates import Candidate, coupled, decoupled
from fretsaw.puzzle.bld.distillation import Errors, distill_layer
from fretsaw.puzzle.bld.layer_files import (
    check_trained,
    layer_file,
    read_trained,
    write_errors,
    write_trained,
)
from fretsaw.puzzle.bld.states import Text
from fretsaw.puzzle.library.alternatives import open_parent
from fretsaw.puzzle.settings import BldSettings
from fretsaw.stage.execute import StageRun
from fretsaw.stage.hashes import hash_file, hash_json
from fretsaw.stage.own_file import Damaged, read_json
from fretsaw.stage.progress import say
from fretsaw.stage.whole import write_json

FINISHED = {"weights": str, "errors": dict}  # of a layer: the sha256 of its file, its errors


def bld(settings: BldSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write every layer's trained alternatives, or the trained pairs of a search's solutions."""
    # --- set-up -----------------------------------------------------------------------------------
    if "library" in inputs:
        if "search" not in inputs:
            raise ValueError(
                "bld: a library is where training in pairs starts; give --search with it"
            )
        check_trained(inputs["library"], inputs)
    config, num_steps = checkpoint.read_config(inputs["parent"]), settings.num_steps
    if "search" in inputs:
        candidates = coupled(config, inputs["search"], cross=settings.cross)
    else:
        candidates = [decoupled(config, settings, i) for i in range(config.num_hidden_layers)]
    finished = [run.resume_folder / f"layer-{i:03d}.json" for i in range(config.num_hidden_layers)]
    trained = [_finished_errors(run.folder, path, i) for i, path in enumerate(finished)]
    steps = {i: num_steps for i, errors in enumerate(trained) if errors is not None}
    tasks = [(i, candidates[i]) for i in range(len(finished)) if i not in steps]
    run.progress.rewind(sum(steps.values()))
    run.progress.start("training", num_steps * len(finished), step=sum(steps.values()))

    # --- layers -----------------------------------------------------------------------------------
    def hear(index: int, said: tuple[int, dict[str, float]]) -> None:
        steps[tasks[index][0]], metrics = said
        run.step(sum(steps.values()), metrics)

    folder = run.folder.absolute()  # a worker may stand elsewhere
    prepare = partial(distiller, settings, inputs, folder, run.device, run.dtype, run.seed)
    with fan_out(prepare, run.workers, device=run.device, check=run.check) as map_tasks:
        for index, errors in map_tasks(tasks, hear):
            layer, _ = tasks[index]
            digest = hash_file(layer_file(run.folder, layer))
            told = {"weights": digest, "errors": errors}
            write_json(finished[layer], {**told, "sha256": hash_json(told)})
            steps[layer] = num_steps
            run.step(sum(steps.values()))

    # --- what came of it --------------------------------------------------------------------------
    layers = [read_json(path, FINISHED)["errors"] for path in finished]
    tokens = num_steps * settings.batch_tokens
    metric = "MSE(parent, alternative) / MSE(parent, 0) of block outputs, held out"
    write_errors(run.folder, inputs, metric=metric, tokens=tokens, layers=layers)
    rows = [row for layer in layers for scope in layer.values() for row in scope.values()]
    improved = sum(row["kept"] in ("trained", "refitted") for row in rows)
    return {"alternatives": len(rows), "improved": improved, "tokens": tokens}


def _finished_errors(folder: Path, path: Path, layer: int) -> Errors | None:
    """Return the errors of a trained layer; None where what it left is not whole."""
    if not path.is_file():
        return None
    try:
        told = read_json(path, FINISHED)
    except Damaged as damaged:
        say(f"{str(damaged).rpartition(';')[0]}, so layer {layer} is trained again")
        return None
    known = told.pop("sha256", None)  # which earlier versions did not write
    if known not in (None, hash_json(told)):
        say(f"{path}: not as it was written, so layer {layer} is trained again")
        return None
    weights = layer_file(folder, layer)
    if weights.is_file() and hash_file(weights) == told["weights"]:
        return told["errors"]
    say(f"{weights}: not as it was written, so layer {layer} is trained again")
    return None


def distiller(
    settings: BldSettings,
    inputs: Mapping[str, Path],
    folder: Path,
    device: str,
    dtype: str,
    seed: int,
) -> Callable[[tuple[int, Sequence[Candidate]], Tell], Errors]:
    """Open the parent and the texts; return what trains a layer and writes its weights."""
    parent = open_parent(inputs, device).requires_grad_(False)
    stored = getattr(torch, DTYPE_NAMES[checkpoint.read_dtype(inputs["parent"])])
    text = Text(parent, inputs["corpus"], settings, seed)

    def distill(task: tuple[int, Sequence[Candidate]], tell: Tell) -> Errors:
        layer, candidates = task
        weights, errors = distill_layer(
            parent,
            layer,
            candidates,
            text,
            settings,
            dtype=dtype,
            start=read_trained(inputs["library"], layer) if "library" in inputs else {},
            tell=lambda step, metrics: tell((step, metrics)),
        )
        write_trained(layer_file(folder, layer), weights, stored)
        return errors

    return distill
