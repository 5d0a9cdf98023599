"""The assemble stage: a solution becomes a checkpoint, repaired in sequence.

Layer by layer, with the child's own activations as input and the parent's state after the same
subblock as target, `o_proj` and `down_proj` are refitted in closed form. So each layer also makes
up for what the layers before it lost.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fretsaw.artifact import write_json
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.attention import GroupedQueryAttention
from fretsaw.model.config import blocks_from_names
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.ffn import SwiGLU
from fretsaw.puzzle.library import build_block, sort_parent
from fretsaw.puzzle.ranking import BATCH_ROWS, calibration_rows, read_orders
from fretsaw.puzzle.repair import Moments, solve
from fretsaw.puzzle.replay import Replay
from fretsaw.puzzle.settings import AssembleSettings
from fretsaw.stage import StageRun


@torch.inference_mode()
def assemble(
    settings: AssembleSettings, inputs: Mapping[str, Path], run: StageRun
) -> dict[str, Any]:
    """Write the child as a checkpoint folder."""
    solutions = json.loads((inputs["search"] / "solutions.json").read_text())
    if not 0 <= settings.solution < len(solutions):
        raise ValueError(
            f"solution {settings.solution}: the search found {len(solutions)}; count from 0"
        )
    choices = solutions[settings.solution]["choices"]
    parent = checkpoint.load(inputs["parent"], device=run.device)
    config = parent.config
    sort_parent(parent, read_orders(inputs["ranking"], config.num_hidden_layers))
    child_config = replace(config, blocks=blocks_from_names(map(tuple, choices)))

    token_ids = calibration_rows(inputs["corpus"], settings.tokens, settings.seq_len, run.device)
    wanted = Replay(parent, token_ids, BATCH_ROWS, score=False)
    own = Replay(parent, token_ids, BATCH_ROWS, score=False)
    run.progress.start("assembling", config.num_hidden_layers, unit="layer")
    blocks, repairs = [], []
    is_changed = False
    for i, block in enumerate(parent.model.layers):
        assert isinstance(block, Block)
        child = build_block(block, config, child_config.blocks[i], i)
        repaired: dict[str, float | None] = {}

        is_changed |= child_config.blocks[i].attention_name != config.blocks[i].attention_name
        wanted.advance(lambda x, b=block: b.attend(x, wanted.context))
        if settings.repair and is_changed and child.has_attention:
            assert isinstance(child.self_attn, GroupedQueryAttention)
            repaired["o_proj"] = _refit_attention(child, child.self_attn, own, wanted)
        own.advance(lambda x, c=child: c.attend(x, own.context))

        is_changed |= child_config.blocks[i].ffn_name != config.blocks[i].ffn_name
        wanted.advance(block.feed)
        if settings.repair and is_changed and child.has_ffn:
            assert isinstance(child.mlp, SwiGLU)
            repaired["down_proj"] = _refit_ffn(child, child.mlp, own, wanted)
        own.advance(child.feed)

        blocks.append(child)
        error = (own.frontier - wanted.frontier).square().mean() / wanted.frontier.square().mean()
        repairs.append({"layer": i, "ridge": repaired, "error": error.item()})
        run.step(i + 1, {"error": error.item()})
    child_decoder = _with_blocks(parent, child_config, blocks)
    checkpoint.write(child_decoder, run.folder, like=inputs["parent"])
    write_json(run.folder / "repairs.json", repairs)
    return {"score": solutions[settings.solution]["score"], "error": repairs[-1]["error"]}


def _refit_attention(
    block: Block, attention: GroupedQueryAttention, own: Replay, wanted: Replay
) -> float | None:
    """Refit `o_proj` so that the child's state after attention nears the parent's."""

    def activations(x: Tensor) -> Tensor:
        return attention.mix(block.input_layernorm(x), own.context)

    return _refit(attention.o_proj, activations, own, wanted)


def _refit_ffn(block: Block, mlp: SwiGLU, own: Replay, wanted: Replay) -> float | None:
    """Refit `down_proj` so that the child's block output nears the parent's."""

    def activations(x: Tensor) -> Tensor:
        return mlp.activations(block.post_attention_layernorm(x))

    return _refit(mlp.down_proj, activations, own, wanted)


def _refit(projection: nn.Linear, activations: Any, own: Replay, wanted: Replay) -> float | None:
    hidden, width = projection.weight.shape
    halves = [Moments.zeros(width, hidden, projection.weight.device) for _ in range(2)]
    for x, target in zip(own.batches(), wanted.batches(), strict=True):
        entering = activations(x)
        missing = target - (x + projection(entering))
        for i, half in enumerate(halves):
            half.add(entering[i::2].flatten(0, 1), missing[i::2].flatten(0, 1))
    repair = solve(*halves)
    projection.weight += repair.correction.to(projection.weight.dtype)
    return repair.ridge


def _with_blocks(parent: Decoder, config: Any, blocks: list[Block]) -> Decoder:
    """Return a decoder of the child's blocks and the parent's embeddings, head and norm."""
    with torch.device("meta"):
        child = Decoder(config)
    child.model.embed_tokens = parent.model.embed_tokens
    child.model.norm = parent.model.norm
    if not config.tie_word_embeddings:
        child.lm_head = parent.lm_head
    child.model.layers = nn.ModuleList(blocks)
    return child
