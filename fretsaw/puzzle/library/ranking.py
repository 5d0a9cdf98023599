"""The rank stage: which FFN channels and key-value heads matter, in one streaming pass."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.shards import save_tensors
from fretsaw.data import loader
from fretsaw.model.attention import GroupedQueryAttention
from fretsaw.model.decoder import Block
from fretsaw.model.ffn import SwiGLU
from fretsaw.puzzle.library.channels import (
    contribution_order,
    iterative_order,
    repaired_order,
)
from fretsaw.puzzle.library.heads import Gram, HeadAlignment, align_heads
from fretsaw.puzzle.library.replay import Frontier
from fretsaw.puzzle.library.slices import LayerOrder
from fretsaw.puzzle.settings import RankSettings
from fretsaw.stage.artifact import verified
from fretsaw.stage.execute import StageRun

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
        if block.has_attention and isinstance(block.self_attn, GroupedQueryAttention):
            keys, values = _head_grams(block, block.self_attn, frontier)
            tensors[f"layers.{i}.kv_heads"] = _kv_head_importance(block, frontier)
            if settings.align_heads:
                for name, tensor in vars(align_heads(keys, values)).items():
                    tensors[f"layers.{i}.heads.{name}"] = tensor
        frontier.walk()
        if block.has_ffn and isinstance(block.mlp, SwiGLU):
            gram, mean_abs = _channel_moments(block, block.mlp, frontier)
            weight = block.mlp.down_proj.weight
            tensors[f"layers.{i}.channels"] = mean_abs * weight.norm(dim=0)
            match settings.channels:
                case "contribution":
                    order = contribution_order(mean_abs, weight)
                case "iterative":
                    order = iterative_order(gram, weight)
                case "repaired":
                    order = repaired_order(gram, weight)
            tensors[f"layers.{i}.order"] = order
        frontier.walk()
        run.step(i + 1)
    save_tensors({name: t.contiguous().cpu() for name, t in tensors.items()}, run.folder / RANKING)
    return {"tokens": token_ids.numel()}


def _channel_moments(
    block: Block, mlp: SwiGLU, frontier: Frontier
) -> tuple[Float[Tensor, "ffn ffn"], Float[Tensor, " ffn"]]:
    """Return X'X and mean |x| of the activations X that enter `down_proj`."""
    width = mlp.down_proj.in_features
    gram = torch.zeros(width, width, dtype=torch.float64, device=frontier.states.device)
    total = torch.zeros(width, device=frontier.states.device)
    for rows in frontier.batches():
        activations = mlp.entering(block.post_attention_layernorm(rows)).flatten(0, 1)
        gram += (activations.mT @ activations).double()
        total += activations.abs().sum(0)
    return gram, total / frontier.states[..., 0].numel()


def _head_grams(
    block: Block, attention: GroupedQueryAttention, frontier: Frontier
) -> tuple[Gram, Gram]:
    """Return K'K and V'V, keys before their rotation, with heads and their dimensions apart."""
    shape = (attention.num_key_value_heads, attention.head_dim)
    grams = []
    for projection in (attention.k_proj, attention.v_proj):
        width = projection.out_features
        gram = torch.zeros(width, width, dtype=torch.float64, device=frontier.states.device)
        for rows in frontier.batches():
            x = projection(block.input_layernorm(rows)).flatten(0, 1)
            gram += (x.mT @ x).double()
        grams.append(gram.unflatten(0, shape).unflatten(2, shape))
    return grams[0], grams[1]


def _kv_head_importance(block: Block, frontier: Frontier) -> Float[Tensor, " kv_heads"]:
    """Return the mean norm of what each key-value head's queries add to the residual stream."""
    attention = block.self_attn
    assert isinstance(attention, GroupedQueryAttention)
    groups = attention.num_key_value_heads
    weight = attention.o_proj.weight.unflatten(1, (groups, -1))  # hidden groups group_dim
    total = torch.zeros(groups, device=frontier.states.device)
    for rows in frontier.batches():
        mixed = attention.entering(block.input_layernorm(rows), frontier.context)
        parts = torch.einsum("bsgd,hgd->bsgh", mixed.unflatten(2, (groups, -1)), weight)
        total += parts.norm(dim=-1).sum((0, 1))
    return total / frontier.states[..., 0].numel()


def calibration_rows(
    corpus: Path, tokens: int, seq_len: int, device: str
) -> Int[Tensor, "rows seq"]:
    """Return the first rows of the training text, as many as the text has up to `tokens`."""
    rows = loader.first_rows(corpus / "train.npy", seq_len, tokens)
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
