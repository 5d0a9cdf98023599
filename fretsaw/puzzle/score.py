"""The score stage: what each alternative costs in quality, one replaced subblock at a time.

Replace-1-block KL (Puzzle, arXiv 2411.19146), attention and FFN apart, each alternative
repaired in closed form first. Finished layers are kept, so a stopped run goes on where it was.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fretsaw.artifact import write_json
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Block
from fretsaw.model.ffn import SwiGLU
from fretsaw.puzzle.library import build_block, sort_parent
from fretsaw.puzzle.ranking import calibration_rows, read_orders
from fretsaw.puzzle.repair import Moments, narrowed, repair_attention, repair_ffn, solve
from fretsaw.puzzle.replay import Replay, flop_bound
from fretsaw.puzzle.settings import ScoreSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.stage import StageRun

SCORES = "scores.json"


@torch.inference_mode()
def score(settings: ScoreSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write every alternative's score with its standard error."""
    parent = checkpoint.load(inputs["parent"], device=run.device)
    config = parent.config
    sort_parent(parent, read_orders(inputs["ranking"], config.num_hidden_layers))
    heldout = inputs["corpus"] / "heldout.npy"
    rows = torch.from_numpy(loader.first_rows(heldout, settings.seq_len, settings.tokens))[:, :-1]
    replay = Replay(parent, rows.to(run.device), settings.batch_rows, score=True)
    repair_rows = calibration_rows(
        inputs["corpus"], settings.repair_tokens, settings.seq_len, run.device
    )
    repair_replay = Replay(parent, repair_rows, settings.batch_rows, score=False)

    finished_path = run.resume_folder / SCORES
    layers = json.loads(finished_path.read_text()) if finished_path.is_file() else []
    names = [layer_alternatives(block, settings.space) for block in config.blocks]
    run.progress.start("scoring", sum(len(a) + len(f) for a, f in names), unit="alternative")
    num_scored = 0
    for i, block in enumerate(parent.model.layers):
        assert isinstance(block, Block)
        is_new = i >= len(layers)
        attention, ffn = names[i]
        scored: dict[str, dict[str, Any]] = {"attention": {}, "ffn": {}}

        def record(
            kind: str, name: str, per_row: Tensor, scored: dict = scored, **how: Any
        ) -> None:
            nonlocal num_scored
            num_scored += 1
            stderr = per_row.std().item() / len(per_row) ** 0.5 if len(per_row) > 1 else 0.0
            scored[kind][name] = {"score": per_row.mean().item(), "stderr": stderr, **how}
            run.step(num_scored, {"kl": per_row.mean().item()}, row=False)

        for name in attention if is_new else ():
            wanted = BlockConfig.from_names(name, config.blocks[i].ffn_name)
            candidate = build_block(block, config, wanted, i)
            ridge = None
            if name != attention[0]:
                pairs = (
                    (x, block.attend(x, repair_replay.context)) for x in repair_replay.batches()
                )
                repair = repair_attention(candidate, pairs, repair_replay.context)
                ridge = repair and repair.ridge
            per_row = replay.kl(
                lambda x, c=candidate: c.attend(x, replay.context), i, after="attention"
            )
            record("attention", name, per_row, ridge=ridge)
        for walking in (replay, repair_replay):
            walking.advance(lambda x, b=block, w=walking: b.attend(x, w.context))
        if is_new:
            grams = _gram_matrices(block, repair_replay)
            for name in ffn:
                candidate, ridge = _repaired(block, name, grams, repair_replay, config, i)
                record("ffn", name, replay.kl(candidate.feed, i, after="ffn"), ridge=ridge)
            _check_full_size(i, scored, config.blocks[i])
            layers.append(scored)
            write_json(finished_path, layers)
        else:
            num_scored += len(attention) + len(ffn)
        for walking in (replay, repair_replay):
            walking.advance(block.feed)
    write_json(
        run.folder / SCORES,
        {"metric": "KL(parent || child), nats a token", "tokens": rows.numel(), "layers": layers},
    )
    candidates = [(i, "attention") for i, (a, _) in enumerate(names) for _ in a]
    candidates += [(i, "ffn") for i, (_, f) in enumerate(names) for _ in f]
    return {
        "alternatives": num_scored,
        "tokens": rows.numel(),
        "replay_flop_bound": round(flop_bound(config, settings.seq_len, candidates), 3),
    }


def _gram_matrices(block: Block, replay: Replay) -> tuple[Moments, Moments] | None:
    """Return the moments of the full FFN's activations, on two halves of the calibration rows."""
    if not (block.has_ffn and isinstance(block.mlp, SwiGLU)):
        return None
    hidden, width = block.mlp.down_proj.weight.shape
    halves = tuple(Moments.zeros(width, hidden, replay.frontier.device) for _ in range(2))
    for rows in replay.batches():
        activations = block.mlp.activations(block.post_attention_layernorm(rows))
        for i, half in enumerate(halves):
            x = activations[i::2].flatten(0, 1)
            half.add(x, x.new_zeros(len(x), hidden))
    return halves[0], halves[1]


def _repaired(
    block: Block,
    name: str,
    grams: tuple[Moments, Moments] | None,
    replay: Replay,
    config: ModelConfig,
    layer: int,
) -> tuple[Block, float | None]:
    """Return the block with another FFN, its last matrix refitted to the parent's output."""
    before = config.blocks[layer]
    candidate = build_block(
        block, config, BlockConfig.from_names(before.attention_name, name), layer
    )
    if name == "ffn_linear" != before.ffn_name:
        repair = repair_ffn(candidate, ((x, block.feed(x)) for x in replay.batches()))
        return candidate, repair and repair.ridge
    width = BlockConfig.from_names("attn_none", name).intermediate_size
    if grams is None or not 0 < width < before.intermediate_size:
        return candidate, None
    assert isinstance(block.mlp, SwiGLU)
    assert isinstance(candidate.mlp, SwiGLU)
    weight = block.mlp.down_proj.weight
    fit, heldout = (narrowed(half.gram, weight, width) for half in grams)
    repair = solve(fit, heldout)
    candidate.mlp.down_proj.weight += repair.correction.to(weight.dtype)
    return candidate, repair.ridge


def _check_full_size(layer: int, scored: Mapping[str, Mapping], block: BlockConfig) -> None:
    own = {"attention": block.attention_name, "ffn": block.ffn_name}
    for kind, name in own.items():
        value = scored[kind][name]["score"]
        assert value == 0, f"layer {layer}: the parent's own {name} scores {value}, not 0"
