"""Replay against full forwards, and its FLOP bound."""

from pathlib import Path

import pytest
import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.model.config import BlockConfig
from fretsaw.model.decoder import Block
from fretsaw.model.place import HALVES, Place
from fretsaw.model.size import block_flops, head_flops
from fretsaw.puzzle.library.replay import Frontier, Replay, flop_bound, subblock
from fretsaw.puzzle.library.slices import build_block


@pytest.mark.parametrize("keeps_log_probs", [True, False])
def test_replay_equals_the_full_forward(tiny: Path, keeps_log_probs: bool, monkeypatch) -> None:
    monkeypatch.setattr(
        "fretsaw.puzzle.library.replay.MAX_TARGET_BYTES", 1 << 30 if keeps_log_probs else 0
    )
    parent = checkpoint.load(tiny / "parent").requires_grad_(False)
    rows = loader.rows(loader.read_tokens(tiny / "corpus/heldout.npy"), 64, 6)
    windows = torch.from_numpy(rows)
    ids, next_ids = windows[:, :-1], windows[:, 1:]
    with torch.inference_mode():
        replay = Replay(parent, windows, 4)
        p = parent(ids).log_softmax(-1)
        for at in (Place(layer, half) for layer in range(4) for half in HALVES):
            assert replay.frontier.at == at
            names = ("gqa4", "ffn16") if at.half == "ffn" else ("attn_none", "ffn64")
            block = parent.model.layers[at.layer]
            assert isinstance(block, Block)
            shape = BlockConfig.from_names(*names)
            candidate = build_block(block, parent.config, shape, at.layer)
            states = replay.frontier.after([subblock(candidate, at.half)])
            got = replay.figures(states, at + 1)

            child = checkpoint.load(tiny / "parent").requires_grad_(False)
            child.model.layers[at.layer] = candidate
            q = child(ids).log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1).mean(1)
            rise = (p - q).gather(2, next_ids[..., None])[..., 0].mean(1)
            differs = (p.argmax(-1) != q.argmax(-1)).float().mean(1)
            torch.testing.assert_close(got.kl, kl, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(got.lm_loss, rise, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(got.top1, differs, rtol=0, atol=0.02)
            replay.frontier.walk()


@torch.inference_mode()
def test_a_frontier_walks_as_the_parent_does(tiny: Path) -> None:
    parent = checkpoint.load(tiny / "parent")
    ids = torch.randint(300, (5, 20))
    states: list[torch.Tensor] = []
    parent.hidden_states(ids, collect=states)
    frontier = Frontier(parent, ids, batch_rows=2)
    for layer, expected in enumerate(states):
        frontier.walk()
        frontier.walk_to(Place(layer + 1))
        torch.testing.assert_close(frontier.states, expected, rtol=0, atol=1e-5)


def test_the_flop_bound_of_equal_layers(tiny: Path) -> None:
    config = checkpoint.read_config(tiny / "parent")
    candidates = [Place(i) for i in range(4)]
    # With a head h and layers c: 4 (4c + h) / (4c + 3c + 2c + c + 4h)
    c, h = block_flops(config, config.blocks[0], context=32).total, head_flops(config)
    assert flop_bound(config, 64, candidates) == pytest.approx(4 * (4 * c + h) / (10 * c + 4 * h))
