"""Phases: the context grows from one to the next, and what cannot be is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import stage_run, stopped_at

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.distill.phases import phase_configs
from fretsaw.distill.settings import CptSettings, Phase, TrainSettings
from fretsaw.distill.train import continue_pretraining
from fretsaw.model.config import ModelConfig, RopeScaling
from fretsaw.stage.execute import StageRun

LOOP = TrainSettings(
    tokens=512 * 3,
    lengths=("seq_len=128,tokens=1.024e3,factor=2", "seq_len=256,tokens=1024,theta=5e4,fresh=true"),
    batch_tokens=512,
    micro_batch_tokens=256,
    seq_len=64,
    heldout_tokens=512,
)


def short_parent(tiny: Path, folder: Path) -> Path:
    """A parent that states a context of 64."""
    model = checkpoint.load(tiny / "parent")
    model.set_context(replace(model.config, max_position_embeddings=64))
    checkpoint.save(model, folder, like=tiny / "parent")
    return folder


def go(tiny: Path, run: StageRun, model: Path) -> dict[str, float]:
    inputs = {"model": model, "corpus": tiny / "corpus"}
    return continue_pretraining(CptSettings(train=LOOP), inputs, run)


def test_phases_are_read_and_counted() -> None:
    assert LOOP.phases == (
        Phase(seq_len=64, tokens=1536),
        Phase(seq_len=128, tokens=1024, factor=2.0),
        Phase(seq_len=256, tokens=1024, theta=5e4, fresh=True),
    )
    assert LOOP.phase_ends == (3, 5, 7)
    assert LOOP.phase_starts == (0, 3, 5)
    assert [LOOP.phase_at(done) for done in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert LOOP.num_steps == 7


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("seq_len=128", "needs seq_len and tokens"),
        ("seq_len=128,tokens=1024,speed=3", "write seq_len=N"),
        ("seq_len=128,tokens=many", "could not convert"),
        ("seq_len=100,tokens=1024", "multiple of seq_len 100"),
        ("seq_len=128,tokens=100", "at least batch_tokens"),
        ("seq_len=128,tokens=1024,factor=0.5", "at least 1"),
    ],
)
def test_a_wrong_phase_is_explained(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(LOOP, lengths=(text,))


def test_the_config_grows_and_keeps_its_first_context() -> None:
    config = ModelConfig.uniform(
        num_hidden_layers=1, num_key_value_heads=1, intermediate_size=8, vocab_size=9,
        hidden_size=8, num_attention_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    first, second, third = phase_configs(config, LOOP.phases, None)
    assert first == config
    assert second.rope_scaling == RopeScaling(
        factor=2.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    assert second.max_position_embeddings == 128
    assert (third.rope_theta, third.rope_scaling) == (5e4, second.rope_scaling)
    assert third.max_position_embeddings == 256
    with pytest.raises(ValueError, match="context is 64; give at most that"):
        phase_configs(config, [Phase(seq_len=128, tokens=1)], None)
    with pytest.raises(ValueError, match="nothing to teach beyond"):
        phase_configs(config, LOOP.phases, 64)


def test_a_run_through_all_lengths_writes_its_context_and_resumes_bitwise(
    tiny: Path, tmp_path: Path
) -> None:
    model = short_parent(tiny, tmp_path / "short")
    metrics = go(tiny, stage_run(tmp_path / "whole"), model)
    assert metrics["heldout_loss"] <= metrics["phase2_before_loss"]
    written = checkpoint.read_config(tmp_path / "whole")
    assert (written.max_position_embeddings, written.rope_theta) == (256, 5e4)
    assert written.rope_scaling is not None
    assert written.rope_scaling.original_max_position_embeddings == 64
    whole = checkpoint.load(tmp_path / "whole").state_dict()
    for stop_at in (3, 4):
        run = stage_run(tmp_path / f"resumed{stop_at}")
        stopped_at(stop_at, run, lambda run: go(tiny, run, model))
        assert go(tiny, stage_run(run.folder), model) == metrics
        resumed = checkpoint.load(run.folder).state_dict()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
