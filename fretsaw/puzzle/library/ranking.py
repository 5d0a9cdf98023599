"""The rank stage: which FFN channels and key-value heads matter, in one streaming pass."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.shards import save_tensors
from fretsaw.data import loader
from fretsaw.model.attention import GroupedQueryAttention
from fretsaw.model.decoder import Block
from fretsaw.model.ffn import SwiGLU
from fretsaw.model.place import Place
from fretsaw.puzzle.library.channels import (
    contribution_order,
    iterative_order,
    repaired_order,
)
from fretsaw.puzzle.library.heads import HeadAlignment, align_heads
from fretsaw.puzzle.library.replay import Frontier
from fretsaw.puzzle.library.slices import LayerOrder
from fretsaw.puzzle.settings import RankSettings
from fretsaw.stage.artifact import verified
from fretsaw.stage.execute import StageRun
from fretsaw.stage.whole import replace_file

RANKING = "ranking.safetensors"
BATCH_ROWS = 16


@torch.inference_mode()
def rank(settings: RankSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write every layer's order of channels and heads, and the contributions behind them."""
    parent = checkpoint.load(inputs["parent"], device=run.device)
    token_ids = calibration_rows(inputs["corpus"], settings.tokens, settings.seq_len, run.device)
    frontier = Frontier(parent, token_ids, BATCH_ROWS)
    run.progress.start("ranking", parent.config.num_hidden_layers, unit="layer")
    tensors: dict[str, Tensor] = {}
    for i, block in enumerate(parent.model.layers):
        assert isinstance(block, Block)
        kept = run.resume_folder / f"layer-{i:04d}.safetensors"
        if kept.is_file():
            ranked = load_file(kept)
            frontier.walk_to(Place(i + 1))
        else:
            ranked = rank_heads(block, frontier, aligns=settings.align_heads)
            ranked |= rank_channels(block, frontier, settings.channels)
            ranked = {name: tensor.contiguous().cpu() for name, tensor in ranked.items()}
            with replace_file(kept) as beside:
                save_tensors(ranked, beside)
        tensors |= {f"layers.{i}.{name}": tensor for name, tensor in ranked.items()}
        run.step(i + 1)
    save_tensors(tensors, run.folder / RANKING)
    return {"tokens": token_ids.numel()}


def rank_heads(block: Block, frontier: Frontier, *, aligns: bool) -> dict[str, Tensor]:
    """Return how a layer's key-value heads matter and are aligned; the frontier walks through it.

    `kv_heads` is the mean norm of what each head's queries add to the residual stream; heads are
    aligned by K'K and V'V, keys before their rotation.
    """
    attention = block.self_attn
    if not block.has_attention or not isinstance(attention, GroupedQueryAttention):
        frontier.walk()
        return {}
    groups, device = attention.num_key_value_heads, frontier.states.device
    of_heads = attention.o_proj.weight.unflatten(1, (groups, -1))  # hidden groups group_dim
    width = attention.k_proj.out_features
    keys, values = torch.zeros(2, width, width, dtype=torch.float64, device=device)
    added, states = torch.zeros(groups, device=device), []
    for rows in frontier.batches():
        normed = block.input_layernorm(rows)
        for gram, projection in ((keys, attention.k_proj), (values, attention.v_proj)):
            x = projection(normed).flatten(0, 1)
            gram += (x.mT @ x).double()
        mixed = attention.entering(normed, frontier.context)
        parts = torch.einsum("bsgd,hgd->bsgh", mixed.unflatten(2, (groups, -1)), of_heads)
        added += parts.norm(dim=-1).sum((0, 1))
        states.append(rows + attention.output(mixed))
    ranked = {"kv_heads": added / frontier.states[..., 0].numel()}
    frontier.walk_with(torch.cat(states))
    if aligns:
        shape = (groups, attention.head_dim)
        apart = (gram.unflatten(0, shape).unflatten(2, shape) for gram in (keys, values))
        ranked |= {f"heads.{name}": tensor for name, tensor in vars(align_heads(*apart)).items()}
    return ranked


def rank_channels(
    block: Block, frontier: Frontier, by: Literal["contribution", "iterative", "repaired"]
) -> dict[str, Tensor]:
    """Return the order of a layer's FFN channels; the frontier walks through it.

    `channels` are the contributions, mean |x_k| |w_k| of the activations X that enter `down_proj`.
    """
    mlp = block.mlp
    if not block.has_ffn or not isinstance(mlp, SwiGLU):
        frontier.walk()
        return {}
    width, device = mlp.down_proj.in_features, frontier.states.device
    gram = torch.zeros(width, width, dtype=torch.float64, device=device)
    total, states = torch.zeros(width, device=device), []
    for rows in frontier.batches():
        activations = mlp.entering(block.post_attention_layernorm(rows))
        states.append(rows + mlp.output(activations))
        flat = activations.flatten(0, 1)
        gram += (flat.mT @ flat).double()
        total += flat.abs().sum(0)
    mean_abs, weight = total / frontier.states[..., 0].numel(), mlp.down_proj.weight
    frontier.walk_with(torch.cat(states))
    match by:
        case "contribution":
            order = contribution_order(mean_abs, weight)
        case "iterative":
            order = iterative_order(gram, weight)
        case "repaired":
            order = repaired_order(gram, weight)
    return {"channels": mean_abs * weight.norm(dim=0), "order": order}


def calibration_rows(
    corpus: Path, tokens: int, seq_len: int, device: str
) -> Int[Tensor, "rows seq"]:
    """Return the first rows of the training text, `tokens` of them; raise where there are fewer."""
    rows = loader.calibration_rows(corpus, seq_len, tokens)
    return torch.from_numpy(rows)[:, :-1].to(device)


def read_orders(ranking: Path, num_layers: int) -> list[LayerOrder]:
    """Read how every layer of the parent is to be rearranged."""
    tensors = load_file(verified(ranking / RANKING))
    names = [field.name for field in dataclasses.fields(HeadAlignment)]
    orders = []
    for i in range(num_layers):
        aligned = f"layers.{i}.heads.order" in tensors
        heads = {name: tensors[f"layers.{i}.heads.{name}"] for name in names} if aligned else None
        orders.append(
            LayerOrder(tensors.get(f"layers.{i}.order"), HeadAlignment(**heads) if heads else None)
        )
    return orders
