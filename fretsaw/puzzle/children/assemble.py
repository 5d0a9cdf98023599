"""The assemble stage: a solution becomes a checkpoint, repaired in sequence, in full precision.

Layer by layer, with the child's own activations as input and the parent's state after the same
subblock as target, every subblock's last matrix is refitted in closed form. So each layer also
makes up for what the layers before it lost. A refit that does not lower the KL is not kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.beside import write_precisions
from fretsaw.model.config import BlockConfig, blocks_from_names
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.place import HALVES
from fretsaw.model.subblock import names_of
from fretsaw.puzzle.bld.layer_files import check_trained, read_trained
from fretsaw.puzzle.library.alternatives import (
    Calibration,
    Trial,
    calibrate,
    judge_gradients,
    open_parent,
    refit_row,
)
from fretsaw.puzzle.library.ranking import BATCH_ROWS
from fretsaw.puzzle.library.slices import alternative
from fretsaw.puzzle.search.solutions import read_solutions
from fretsaw.puzzle.settings import AssembleSettings
from fretsaw.stage.execute import StageRun
from fretsaw.stage.whole import write_json


@torch.inference_mode()
def assemble(
    settings: AssembleSettings, inputs: Mapping[str, Path], run: StageRun
) -> dict[str, Any]:
    """Write the child as a checkpoint folder."""
    solutions = read_solutions(inputs["search"])
    if not 0 <= settings.solution < len(solutions):
        raise ValueError(
            f"solution {settings.solution}: the search found {len(solutions)}, counted from 0; ask "
            "for fewer candidates, a larger alpha, or a target that leaves more to choose from"
        )
    choices = solutions[settings.solution]["choices"]
    parent = open_parent(inputs, run.device)
    config = parent.config
    if len(choices) != config.num_hidden_layers:
        raise ValueError(
            f"{inputs['search']}: a child of {len(choices)} layers, but {inputs['parent']} has "
            f"{config.num_hidden_layers}; give a search of this parent's scores"
        )
    served = replace(config, blocks=blocks_from_names(map(tuple, choices)))
    child_config = served.in_full

    text = inputs["corpus"], settings.tokens, settings.seq_len
    by_estimate = settings.repair and settings.judge == "estimate"
    gradients = judge_gradients(parent, *text, run) if by_estimate else None
    calibration = calibrate(parent, *text, BATCH_ROWS, gradients)
    run.progress.start("assembling", config.num_hidden_layers, unit="layer")
    repairs = []
    blocks = []
    if (library := inputs.get("library")) is not None:
        check_trained(library, inputs)
    children = build_child(
        parent, child_config.blocks, calibration, repair=settings.repair, library=library
    )
    for child, row in children:
        blocks.append(child)
        repairs.append({"layer": len(repairs), **row})
        run.step(len(blocks), {"error": row["error"]})
    child = parent.with_blocks(child_config, blocks)
    checkpoint.write(child, run.folder, like=inputs["parent"])
    write_precisions(run.folder, served.blocks)
    write_json(run.folder / "repairs.json", repairs)
    return {"score": solutions[settings.solution]["score"], "error": repairs[-1]["error"]}


@torch.inference_mode()
def build_child(
    parent: Decoder,
    child_blocks: Sequence[BlockConfig],
    calibration: Calibration,
    *,
    repair: bool,
    library: Path | None = None,
) -> Iterator[tuple[Block, dict[str, Any]]]:
    """Yield the child's blocks, first layer first, and how far the child is off after each.

    With a `library` its blocks start from the weights that `fretsaw bld` trained. With `repair`
    each is refitted on the states that the child's earlier blocks give, where that lowers the KL.
    The parent must be sorted, `calibration` at its first subblock. A row has `repair` by
    subblock and the squared `error` of the child's state relative to the parent's.
    """
    config, fit = parent.config, calibration.fit
    trial = Trial(calibration)
    is_changed = False
    for i, block in enumerate(parent.model.layers):
        assert isinstance(block, Block)
        trained = read_trained(library, i) if library is not None else {}
        child = alternative(block, config, child_blocks[i], i, trained)
        refits: dict[str, dict[str, float | None] | None] = {}
        names = zip(HALVES, names_of(child_blocks[i]), names_of(config.blocks[i]), strict=True)
        for half, name, own in names:
            is_changed |= name != own
            is_refitted = repair and is_changed
            refit = trial.append(child, half, calibration.fit.later(1) if is_refitted else None)
            refits[half] = refit_row(refit)
            calibration.walk()
        error = (trial.states - fit.states).square().mean() / fit.states.square().mean()
        yield child, {"repair": refits, "error": error.item()}
