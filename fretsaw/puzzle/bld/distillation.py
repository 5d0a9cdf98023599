"""One layer: its candidates sliced, repaired, trained and refitted, each kept at its best.

Puzzle's blockwise local distillation (arXiv 2411.19146, section 3) with loss MSE(o_p, o_c) /
MSE(o_p, 0) of block outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fretsaw.model.attention import AttentionContext
from fretsaw.model.decoder import Block, Decoder
from fretsaw.puzzle.bld.candidates import Candidate, Scope
from fretsaw.puzzle.bld.layer_files import LayerWeights
from fretsaw.puzzle.bld.nested import Nested, Pairs, num_units, output_name
from fretsaw.puzzle.bld.states import Text
from fretsaw.puzzle.library.repair import repair
from fretsaw.puzzle.library.replay import Frontier
from fretsaw.puzzle.library.slices import Trained, alternative
from fretsaw.puzzle.settings import BldSettings
from fretsaw.training.optimizer import apply_gradients, build_optimizers
from fretsaw.training.precision import autocast

LEAST_ERROR = 1e-12  # what is below counts as none; keeps the root's slope finite

BlockStates = tuple[
    Tensor, Tensor, Tensor
]  # the parent's: before the block, after its attention, after
Errors = dict[str, dict[str, dict[str, Any]]]  # scope -> candidate -> stage -> held-out error


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
    errors: Errors = {c.scope: {} for c in candidates}
    least: dict[str, float] = {}

    def consider(stage: str) -> None:
        for c in candidates:
            choosing, reporting = block_error(blocks[c.name], c.scope, heldout, text.context)
            row = errors[c.scope].setdefault(c.name, {})
            row[stage] = reporting
            if choosing < least.get(c.name, float("inf")):
                least[c.name], row["kept"] = choosing, stage
                own = own_parameters(c, blocks[c.name])
                weights.own[c.name] = {n: p.detach().clone() for n, p in own.items()}

    def refit(*, is_trained: bool) -> None:
        for c in candidates:
            repair_block(blocks[c.name], c.scope, calibration, text.context, is_trained=is_trained)

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
        kept = {c.name: errors[c.scope][c.name]["kept"] for c in candidates}
        weights.nested = [n for n in kept if num_units(n) and kept[n] in ("trained", "refitted")]
    return weights, errors


def own_parameters(candidate: Candidate, block: Block) -> dict[str, nn.Parameter]:
    """Return what a candidate does not share: its output matrix, or a whole block's matrices."""
    if candidate.scope == "block":
        return {n: p for n, p in block.named_parameters() if p.ndim == 2}
    name = output_name(candidate.name)
    return {name: block.get_parameter(name)}


@torch.no_grad()
def states_of(parent: Block, frontier: Frontier) -> list[BlockStates]:
    """Return batches of the parent's states before its block, after its attention, and after it."""
    batches = []
    for x in frontier.batches():
        after = parent.attend(x, frontier.context)
        batches.append((x, after, parent.feed(after)))
    return batches


@torch.no_grad()
def block_error(
    block: Block, scope: Scope, batches: Sequence[BlockStates], context: AttentionContext
) -> tuple[float, float]:
    """Return MSE(block, parent) / MSE(parent, 0) of the block's output, on even and on odd rows."""

    def halves(state: Tensor) -> Tensor:
        per_row = state.square().sum((1, 2), dtype=torch.float64)
        return torch.stack([per_row[::2].sum(), per_row[1::2].sum()])

    missed = total = torch.zeros(2, dtype=torch.float64, device=context.cos.device)
    for x, after, wanted in batches:
        output = block.feed(after) if scope == "ffn" else block(x, context)
        missed, total = missed + halves(output - wanted), total + halves(wanted)
    choosing, reporting = (missed / total).tolist()
    return choosing, reporting


@torch.no_grad()
def repair_block(
    block: Block,
    scope: Scope,
    batches: Sequence[BlockStates],
    context: AttentionContext,
    *,
    is_trained: bool,
) -> None:
    """Refit a candidate's output matrices in closed form, so that each half nears the parent's.

    In a whole block the FFN sees what the block's own attention gives, and an attention trained to
    serve that FFN is not pulled back to the parent's; without an FFN it nears the whole block.
    """
    if scope == "attention" or (scope == "block" and not (is_trained and block.has_ffn)):
        pairs = ((x, after if block.has_ffn else wanted) for x, after, wanted in batches)
        repair(block, "attention", pairs, context)
    if scope == "ffn":
        repair(block, "ffn", ((after, wanted) for _, after, wanted in batches), context)
    if scope == "block":
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
    is_nested = candidates[0].scope != "block"
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
    """Return whom a step trains: `per_step` candidates of each scope at random, or all for 0."""
    if not per_step:
        return [c.name for c in candidates]
    rng = np.random.default_rng(seed)
    chosen: list[str] = []
    for scope in dict.fromkeys(c.scope for c in candidates):
        names = [c.name for c in candidates if c.scope == scope]
        chosen += rng.permutation(names)[:per_step].tolist()
    return chosen
