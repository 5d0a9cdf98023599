"""The bld stage: block distillation, every layer's alternatives trained on the parent's own states.

Puzzle's blockwise local distillation (arXiv 2411.19146, section 3) with loss MSE(o_p, o_c) /
MSE(o_p, 0) of block outputs. First decoupled, each alternative beside the parent's other half, and
nested: all sizes of a layer in one run. Then, on what a search has chosen, coupled: attention and
FFN of a layer together. A layer is a task of its own: a pure function of (parent, text, settings).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.llama import DTYPE_NAMES
from fretsaw.distributed.fanout import fan_out
from fretsaw.distributed.task import Tell
from fretsaw.model.attention import AttentionContext
from fretsaw.model.config import BlockConfig, ModelConfig, without_precision
from fretsaw.model.decoder import Block, Decoder
from fretsaw.puzzle.bld.layer_files import (
    LayerWeights,
    check_trained,
    layer_file,
    read_trained,
    write_errors,
    write_trained,
)
from fretsaw.puzzle.bld.nested import Nested, Pairs, num_units, output_name
from fretsaw.puzzle.bld.states import Text
from fretsaw.puzzle.library.ranking import read_orders
from fretsaw.puzzle.library.repair import repair
from fretsaw.puzzle.library.replay import Frontier
from fretsaw.puzzle.library.slices import Trained, alternative, pair_name, sort_parent
from fretsaw.puzzle.settings import BldSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.stage.artifact import write_json
from fretsaw.stage.execute import StageRun
from fretsaw.training.optimizer import apply_gradients, build_optimizers
from fretsaw.training.precision import autocast

LEAST_ERROR = 1e-12  # what is below counts as none; keeps the root's slope finite

Kind = Literal["attention", "ffn", "block"]
States = tuple[Tensor, Tensor, Tensor]  # the parent's: before the block, after its attention, after
Errors = dict[str, dict[str, dict[str, Any]]]  # kind -> candidate -> stage -> held-out error


@dataclass(frozen=True)
class Candidate:
    """What is trained: one subblock beside the parent's other half, or the whole block."""

    name: str
    kind: Kind
    wanted: BlockConfig


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
    steps = {i: num_steps for i, path in enumerate(finished) if path.is_file()}
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
            write_json(finished[layer], errors)
            steps[layer] = num_steps
            run.step(sum(steps.values()))

    # --- what came of it --------------------------------------------------------------------------
    layers = [json.loads(path.read_text()) for path in finished]
    tokens = num_steps * settings.batch_tokens
    metric = "MSE(parent, alternative) / MSE(parent, 0) of block outputs, held out"
    write_errors(run.folder, inputs, metric=metric, tokens=tokens, layers=layers)
    rows = [row for layer in layers for kind in layer.values() for row in kind.values()]
    improved = sum(row["kept"] in ("trained", "refitted") for row in rows)
    return {"alternatives": len(rows), "improved": improved, "tokens": tokens}


# --- what is trained ------------------------------------------------------------------------------


def decoupled(config: ModelConfig, settings: BldSettings, layer: int) -> list[Candidate]:
    """Return a layer's alternatives that have weights, each beside the parent's other half."""
    space = replace(settings.space, precisions=())  # trained in full, and rounded after
    attention, ffn = layer_alternatives(config.blocks[layer], space)
    return [
        Candidate(name, "attention", BlockConfig.from_names(name, ffn[0]))
        for name in attention[1:]
        if name != "attn_none"
    ] + [
        Candidate(name, "ffn", BlockConfig.from_names(attention[0], name))
        for name in ffn[1:]
        if name != "ffn_none"
    ]


def coupled(config: ModelConfig, search: Path, *, cross: bool) -> list[list[Candidate]]:
    """Return the changed pairs of every layer in a search's solutions.

    With `cross`, every attention that a layer has there with every FFN that it has there.
    """
    solutions = json.loads((search / "solutions.json").read_text())
    num_layers = len(solutions[0]["choices"])
    if num_layers != config.num_hidden_layers:
        raise ValueError(
            f"{search}: solutions of {num_layers} layers, but the parent has "
            f"{config.num_hidden_layers}; give a search of this parent's scores"
        )
    found = []
    for layer, block in enumerate(config.blocks):
        pairs = {tuple(map(without_precision, s["choices"][layer])) for s in solutions}
        if cross:
            pairs = {(a, f) for a, _ in pairs for _, f in pairs}
        pairs -= {(block.attention_name, block.ffn_name), ("attn_none", "ffn_none")}
        found.append(
            [
                Candidate(pair_name(a, f), "block", BlockConfig.from_names(a, f))
                for a, f in sorted(pairs)
            ]
        )
    return found


# --- one layer ------------------------------------------------------------------------------------


def distiller(
    settings: BldSettings,
    inputs: Mapping[str, Path],
    folder: Path,
    device: str,
    dtype: str,
    seed: int,
) -> Callable[[tuple[int, Sequence[Candidate]], Tell], Errors]:
    """Open the parent and the texts; return what trains a layer and writes its weights."""
    parent = checkpoint.load(inputs["parent"], device=device).requires_grad_(False)
    sort_parent(parent, read_orders(inputs["ranking"], parent.config.num_hidden_layers))
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


def distill_layer(
    parent: Decoder,
    layer: int,
    candidates: Sequence[Candidate],
    text: Text,
    settings: BldSettings,
    *,
    dtype: str = "fp32",
    start: Trained | None = None,
    tell: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> tuple[LayerWeights, Errors]:
    """Slice, repair, train and refit a layer's candidates; keep each at its best held-out error.

    One half of that text chooses, the other gives the errors. The result is the same in any order
    of layers and in any process. `tell` hears of every step.
    """
    block = parent.model.layers[layer]
    assert isinstance(block, Block)
    config = parent.config
    blocks = {c.name: alternative(block, config, c.wanted, layer, start or {}) for c in candidates}
    heldout = states_of(block, text.heldout.before(layer))
    calibration = states_of(block, text.calibration.before(layer))
    weights = LayerWeights({}, {}, [], 0)
    errors: Errors = {c.kind: {} for c in candidates}
    least: dict[str, float] = {}

    def consider(stage: str) -> None:
        for c in candidates:
            choosing, reporting = block_error(blocks[c.name], c.kind, heldout, text.context)
            row = errors[c.kind].setdefault(c.name, {})
            row[stage] = reporting
            if choosing < least.get(c.name, float("inf")):
                least[c.name], row["kept"] = choosing, stage
                own = own_parameters(c, blocks[c.name])
                weights.own[c.name] = {n: p.detach().clone() for n, p in own.items()}

    def refit(*, is_trained: bool) -> None:
        for c in candidates:
            repair_block(blocks[c.name], c.kind, calibration, text.context, is_trained=is_trained)

    consider("decoupled" if start else "plain")
    if settings.begin == "repaired":
        refit(is_trained=False)
        consider("repaired")
    nested = train(block, candidates, blocks, layer, text, settings, dtype=dtype, tell=tell)
    consider("trained")
    refit(is_trained=True)
    consider("refitted")
    if nested is not None:
        weights.shared = {n: p.detach() for n, p in nested.shared.items()}
        weights.kv_heads = nested.kv_heads
        kept = {c.name: errors[c.kind][c.name]["kept"] for c in candidates}
        weights.nested = [n for n in kept if num_units(n) and kept[n] in ("trained", "refitted")]
    return weights, errors


def own_parameters(candidate: Candidate, block: Block) -> dict[str, nn.Parameter]:
    """Return what a candidate does not share: its output matrix, or a whole block's matrices."""
    if candidate.kind == "block":
        return {n: p for n, p in block.named_parameters() if p.ndim == 2}
    name = output_name(candidate.name)
    return {name: block.get_parameter(name)}


@torch.no_grad()
def states_of(parent: Block, frontier: Frontier) -> list[States]:
    """Return batches of the parent's states before its block, after its attention, and after it."""
    batches = []
    for x in frontier.batches():
        after = parent.attend(x, frontier.context)
        batches.append((x, after, parent.feed(after)))
    return batches


@torch.no_grad()
def block_error(
    block: Block, kind: Kind, batches: Sequence[States], context: AttentionContext
) -> tuple[float, float]:
    """Return MSE(block, parent) / MSE(parent, 0) of the block's output, on even and on odd rows."""

    def halves(state: Tensor) -> Tensor:
        per_row = state.square().sum((1, 2), dtype=torch.float64)
        return torch.stack([per_row[::2].sum(), per_row[1::2].sum()])

    missed = total = torch.zeros(2, dtype=torch.float64, device=context.cos.device)
    for x, after, wanted in batches:
        output = block.feed(after) if kind == "ffn" else block(x, context)
        missed, total = missed + halves(output - wanted), total + halves(wanted)
    choosing, reporting = (missed / total).tolist()
    return choosing, reporting


@torch.no_grad()
def repair_block(
    block: Block,
    kind: Kind,
    batches: Sequence[States],
    context: AttentionContext,
    *,
    is_trained: bool,
) -> None:
    """Refit a candidate's output matrices in closed form, so that each half nears the parent's.

    In a whole block the FFN sees what the block's own attention gives, and an attention trained to
    serve that FFN is not pulled back to the parent's; without an FFN it nears the whole block.
    """
    if kind == "attention" or (kind == "block" and not (is_trained and block.has_ffn)):
        pairs = ((x, after if block.has_ffn else wanted) for x, after, wanted in batches)
        repair(block, "attention", pairs, context)
    if kind == "ffn":
        repair(block, "ffn", ((after, wanted) for _, after, wanted in batches), context)
    if kind == "block":
        pairs = ((block.attend(x, context), wanted) for x, _, wanted in batches)
        repair(block, "ffn", pairs, context)


def train(
    parent: Block,
    candidates: Sequence[Candidate],
    blocks: Mapping[str, Block],
    layer: int,
    text: Text,
    settings: BldSettings,
    *,
    dtype: str,
    tell: Callable[[int, dict[str, float]], None],
) -> Nested | None:
    """Train `blocks` in place: pairs as they are, alternatives in the `Nested` that is returned.

    What is minimised is the sum of the roots of the normalised errors: of the errors themselves the
    smallest size would have nearly all, of their logarithms the largest would hold back the rest.
    """
    if not candidates:
        return None
    is_nested = candidates[0].kind != "block"
    trainee = Nested(parent, blocks) if is_nested else Pairs(blocks)
    # Named as in a decoder: so the optimizers know the matrices of a block.
    named = nn.ModuleDict({"decoder": nn.ModuleDict({"layers": trainee})})
    optimizers = build_optimizers(named, settings.update)
    through_ffn = settings.attention_target == "block" or not is_nested
    for step in range(settings.num_steps):
        x = text.batch(layer, step)
        names = drawn(candidates, settings.sizes_per_step, seed=[text.seed, layer, step])
        with autocast(x.device, dtype):
            losses = trainee.losses(parent, x, text.context, names, through_ffn=through_ffn)
        errors = torch.stack(list(losses.values()))
        errors.clamp_min(LEAST_ERROR).sqrt().sum().backward()
        update = apply_gradients(
            named, optimizers, settings.update, step=step, num_steps=settings.num_steps
        )
        metrics = {"error": errors.mean().item(), "grad_norm": update["grad_norm"]}
        tell(step + 1, {"layer": layer, **metrics})
    with torch.no_grad():
        for name, block in blocks.items():
            for parameter, tensor in trainee.tensors(name).items():
                block.get_parameter(parameter).copy_(tensor)
            block.requires_grad_(False)
    return trainee if isinstance(trainee, Nested) else None


def drawn(candidates: Sequence[Candidate], per_step: int, *, seed: list[int]) -> list[str]:
    """Return the candidates that a step trains: `per_step` of each kind at random, or all for 0."""
    if not per_step:
        return [c.name for c in candidates]
    rng = np.random.default_rng(seed)
    chosen: list[str] = []
    for kind in dict.fromkeys(c.kind for c in candidates):
        names = [c.name for c in candidates if c.kind == kind]
        chosen += rng.permutation(names)[:per_step].tolist()
    return chosen
