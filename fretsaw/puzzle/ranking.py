"""The rank stage: which FFN channels and key-value heads matter, in one streaming pass."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.model.attention import GroupedQueryAttention
from fretsaw.model.decoder import Block
from fretsaw.model.ffn import SwiGLU
from fretsaw.puzzle.replay import Replay
from fretsaw.puzzle.settings import RankSettings
from fretsaw.stage import StageRun

RANKING = "ranking.safetensors"
BATCH_ROWS = 16


@torch.inference_mode()
def rank(settings: RankSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write every layer's channel order and the contributions behind it."""
    parent = checkpoint.load(inputs["parent"], device=run.device)
    token_ids = calibration_rows(inputs["corpus"], settings.tokens, settings.seq_len, run.device)
    replay = Replay(parent, token_ids, BATCH_ROWS, score=False)
    run.progress.start("ranking", parent.config.num_hidden_layers, unit="layer")
    tensors: dict[str, Tensor] = {}
    for i, block in enumerate(parent.model.layers):
        assert isinstance(block, Block)
        if block.has_attention and isinstance(block.self_attn, GroupedQueryAttention):
            tensors[f"layers.{i}.kv_heads"] = _kv_head_importance(block, replay)
        replay.advance(lambda x, block=block: block.attend(x, replay.context))
        if block.has_ffn and isinstance(block.mlp, SwiGLU):
            contribution = _channel_contribution(block, replay)
            tensors[f"layers.{i}.channels"] = contribution
            tensors[f"layers.{i}.order"] = contribution.argsort(descending=True, stable=True)
        replay.advance(block.feed)
        run.step(i + 1)
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, run.folder / RANKING)
    return {"tokens": token_ids.numel()}


def _channel_contribution(block: Block, replay: Replay) -> Float[Tensor, " ffn"]:
    """Return the mean over tokens of |x_k| |W_down,k| (Puzzle, appendix A)."""
    assert isinstance(block.mlp, SwiGLU)
    total = torch.zeros(block.mlp.down_proj.in_features, device=replay.frontier.device)
    for rows in replay.batches():
        activations = block.mlp.activations(block.post_attention_layernorm(rows))
        total += activations.abs().sum((0, 1))
    num_tokens = replay.frontier[..., 0].numel()
    return total / num_tokens * block.mlp.down_proj.weight.norm(dim=0)


def _kv_head_importance(block: Block, replay: Replay) -> Float[Tensor, " kv_heads"]:
    """Return the mean norm of what each key-value head's queries add to the residual stream."""
    attention = block.self_attn
    assert isinstance(attention, GroupedQueryAttention)
    groups = attention.num_key_value_heads
    weight = attention.o_proj.weight.unflatten(1, (groups, -1))  # hidden groups group_dim
    total = torch.zeros(groups, device=replay.frontier.device)
    for rows in replay.batches():
        mixed = attention.mix(block.input_layernorm(rows), replay.context)
        parts = torch.einsum("bsgd,hgd->bsgh", mixed.unflatten(2, (groups, -1)), weight)
        total += parts.norm(dim=-1).sum((0, 1))
    return total / replay.frontier[..., 0].numel()


def calibration_rows(
    corpus: Path, tokens: int, seq_len: int, device: str
) -> Int[Tensor, "rows seq"]:
    """Return the first rows of the training text, as many as the text has up to `tokens`."""
    rows = loader.first_rows(corpus / "train.npy", seq_len, tokens)
    return torch.from_numpy(rows)[:, :-1].to(device)


def read_orders(ranking: Path, num_layers: int) -> list[Int[Tensor, " ffn"]]:
    """Read every layer's channel order; an empty tensor where the layer has no SwiGLU."""
    tensors = load_file(ranking / RANKING)
    empty = torch.zeros(0, dtype=torch.long)
    return [tensors.get(f"layers.{i}.order", empty) for i in range(num_layers)]
