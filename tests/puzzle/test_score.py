"""Replay against full forwards, and the whole score table of a small parent."""

import json
from pathlib import Path

import pytest
import torch
from support import stage_run

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.model.config import BlockConfig
from fretsaw.model.decoder import Block
from fretsaw.puzzle.library import build_block
from fretsaw.puzzle.replay import Replay, flop_bound
from fretsaw.puzzle.score import score
from fretsaw.puzzle.settings import ScoreSettings


@pytest.mark.parametrize("keeps_log_probs", [True, False])
def test_replay_equals_the_full_forward(tiny: Path, keeps_log_probs: bool, monkeypatch) -> None:
    monkeypatch.setattr("fretsaw.puzzle.replay.MAX_TARGET_BYTES", 1 << 30 if keeps_log_probs else 0)
    parent = checkpoint.load(tiny / "parent").requires_grad_(False)
    ids = torch.from_numpy(loader.rows(loader.read_tokens(tiny / "corpus/heldout.npy"), 64, 6))
    ids = ids[:, :-1]
    with torch.inference_mode():
        replay = Replay(parent, ids, 4, score=True)
        for i, block in enumerate(parent.model.layers):
            assert isinstance(block, Block)
            for kind, names in (("attention", ("attn_none", "ffn64")), ("ffn", ("gqa4", "ffn16"))):
                candidate = build_block(block, parent.config, BlockConfig.from_names(*names), i)
                if kind == "attention":
                    move = lambda x, c=candidate: c.attend(x, replay.context)  # noqa: E731
                else:
                    replay.advance(lambda x, b=block: b.attend(x, replay.context))
                    move = candidate.feed
                got = replay.kl(move, i, after=kind)
                child = checkpoint.load(tiny / "parent").requires_grad_(False)
                child.model.layers[i] = candidate
                p, q = parent(ids).log_softmax(-1), child(ids).log_softmax(-1)
                expected = (p.exp() * (p - q)).sum(-1).mean(1)
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
            replay.advance(block.feed)


def test_scores_of_a_small_parent(tiny: Path, tmp_path: Path) -> None:
    inputs = {name: tiny / name for name in ("parent", "corpus", "ranking")}
    settings = ScoreSettings(repair_tokens=2048, tokens=1024, seq_len=64, batch_rows=4)
    metrics = score(settings, inputs, stage_run(tmp_path / "a"))
    layers = json.loads((tmp_path / "a" / "scores.json").read_text())["layers"]
    assert metrics["alternatives"] == sum(len(x["attention"]) + len(x["ffn"]) for x in layers)
    for layer in layers:
        assert layer["attention"]["gqa4"]["score"] == 0.0  # the parent's own: exactly
        assert layer["ffn"]["ffn64"]["score"] == 0.0
        assert layer["ffn"]["ffn_none"]["score"] > layer["ffn"]["ffn16"]["score"] > 0
        assert layer["attention"]["attn_none"]["score"] > 0

    # Stopped after two layers and run again: the same table.
    run = stage_run(tmp_path / "b")
    (run.resume_folder / "scores.json").write_text(json.dumps(layers[:2]))
    score(settings, inputs, run)
    again = (tmp_path / "b" / "scores.json").read_text()
    assert again == (tmp_path / "a" / "scores.json").read_text()


def test_the_flop_bound_of_equal_layers_without_a_head(tiny: Path) -> None:
    config = checkpoint.read_config(tiny / "parent")
    candidates = [(i, "attention") for i in range(4)]
    # With a head h and layers c: 4 (4c + h) / (4c + 3c + 2c + c + 4h)
    from fretsaw.model.size import block_flops, head_flops

    c, h = block_flops(config, config.blocks[0], context=32).total, head_flops(config)
    assert flop_bound(config, 64, candidates) == pytest.approx(4 * (4 * c + h) / (10 * c + 4 * h))
