"""The loop: resumed = never stopped, bitwise; micro-batches do not matter; the gate holds."""

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from support import stage_run, stopped_at

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.distill.objective import Objective, losses
from fretsaw.distill.settings import CptSettings, DistillSettings, TrainSettings
from fretsaw.distill.train import continue_pretraining, distill, train
from fretsaw.model.decoder import Decoder
from fretsaw.stage.execute import StageRun
from fretsaw.training import low_precision
from fretsaw.training.settings import LoraSettings, SpikeSettings, UpdateSettings

SETTINGS = TrainSettings(
    tokens=256 * 6,
    batch_tokens=256,
    micro_batch_tokens=128,
    seq_len=64,
    heldout_tokens=256,
    heldout_every=2,
    update=UpdateSettings(learning_rate=1e-3),
)


def student(tiny: Path) -> Decoder:
    decoder = checkpoint.load(tiny / "parent")
    with torch.no_grad():
        decoder.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(0.5)
    return decoder


def run_to_the_end(tiny: Path, run: StageRun, stop_at: int | None) -> dict[str, torch.Tensor]:
    """Train, asked to stop after `stop_at` steps and run again if given."""
    objective = Objective(kl=1.0, cosine=1.0, lm=0.5)

    def go(run: StageRun) -> Decoder:
        decoder = student(tiny)
        teacher = checkpoint.load(tiny / "parent")
        train(decoder, teacher, tiny / "corpus", objective, SETTINGS, run, keep_best=True)
        return decoder

    if stop_at is not None:
        stopped_at(stop_at, run, go)
        run = stage_run(run.folder)
    return go(run).state_dict()


@pytest.mark.parametrize("stop_at", range(1, 6))
def test_a_stopped_run_ends_bitwise_as_one_that_never_stopped(
    tiny: Path, tmp_path: Path, stop_at: int
) -> None:
    whole = run_to_the_end(tiny, stage_run(tmp_path / "whole"), None)
    resumed = run_to_the_end(tiny, stage_run(tmp_path / "resumed"), stop_at)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    rows = [(tmp_path / f / "metrics.jsonl").read_text().splitlines() for f in ("whole", "resumed")]
    assert len(rows[0]) == len(rows[1]) == 6


def test_micro_batches_do_not_change_the_gradient(tiny: Path) -> None:
    window = torch.from_numpy(
        loader.batch(
            loader.read_tokens(tiny / "corpus/train.npy"), seed=0, step=0, batch_size=8, seq_len=64
        )
    )
    teacher = checkpoint.load(tiny / "parent").requires_grad_(False).double()

    def gradient(micro_rows: int) -> torch.Tensor:
        decoder = student(tiny).double()
        for micro in window.split(micro_rows):
            loss, _ = losses(decoder, teacher, micro, Objective(1.0, 1.0, 1.0), "fp32")
            (loss / window[:, 1:].numel()).backward()
        return torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])

    # The losses themselves are float32, so that is how far the cuts agree.
    torch.testing.assert_close(gradient(8), gradient(2), rtol=0, atol=1e-7)


def test_the_gate_never_returns_worse_than_it_got(tiny: Path, tmp_path: Path) -> None:
    ruinous = replace(SETTINGS, update=UpdateSettings(learning_rate=1.0))
    inputs = {"child": tiny / "parent", "parent": tiny / "parent", "corpus": tiny / "corpus"}
    metrics = distill(DistillSettings(train=ruinous), inputs, stage_run(tmp_path))
    assert metrics["heldout_kl"] <= metrics["before_kl"] == 0.0
    before, after = checkpoint.load(tiny / "parent"), checkpoint.load(tmp_path)
    pairs = zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_distillation_brings_a_damaged_child_nearer(tiny: Path, tmp_path: Path) -> None:
    checkpoint.save(student(tiny), tmp_path / "child", like=tiny / "parent")
    inputs = {"child": tmp_path / "child", "parent": tiny / "parent", "corpus": tiny / "corpus"}
    settings = DistillSettings(train=replace(SETTINGS, tokens=256 * 20, heldout_every=5))
    metrics = distill(settings, inputs, stage_run(tmp_path / "healed"))
    assert metrics["heldout_kl"] < 0.7 * metrics["before_kl"]


def test_continued_pretraining_needs_no_parent(tiny: Path, tmp_path: Path) -> None:
    inputs = {"model": tiny / "parent", "corpus": tiny / "corpus"}
    settings = CptSettings(train=SETTINGS)
    metrics = continue_pretraining(settings, inputs, stage_run(tmp_path / "a"))
    assert metrics["heldout_loss"] <= metrics["before_loss"]
    as_distillation = DistillSettings(kl_weight=0, cosine_weight=0, lm_weight=1, train=SETTINGS)
    inputs = {"child": tiny / "parent", "corpus": tiny / "corpus"}
    assert distill(as_distillation, inputs, stage_run(tmp_path / "c")) == metrics
    with pytest.raises(ValueError, match="no parent"):
        distill(DistillSettings(train=SETTINGS), inputs, stage_run(tmp_path / "b"))


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("seq_len", 1, "at least 2"),
        ("micro_batch_tokens", 100, "multiple of seq_len"),
        ("batch_tokens", 300, "multiple of micro_batch"),
        ("tokens", 10, "at least batch_tokens"),
    ],
)
def test_settings_say_what_is_wrong(field: str, value: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(SETTINGS, **{field: value})


# --- spikes ---------------------------------------------------------------------------------------

WATCHED = replace(
    SETTINGS,
    tokens=256 * 16,
    heldout_every=8,
    spikes=SpikeSettings(
        max_rollbacks=2, spike_mads=20.0, spike_window=8, snapshot_every=3, rewarm_steps=2
    ),
)


def spoilt_corpus(tiny: Path, folder: Path, step: int) -> Path:
    """The tiny corpus, with noise in place of the text that one step reads."""
    shutil.copytree(tiny / "corpus", folder)
    tokens = np.load(folder / "train.npy")
    for window in loader.order(loader.num_windows(tokens, 64), 4, seed=0, step=step):
        noise = np.random.default_rng(window).integers(0, 300, 64)
        tokens[window * 64 : window * 64 + 64] = noise
    np.save(folder / "train.npy", tokens)
    return folder


def continued(tiny: Path, corpus: Path, run: StageRun, settings: TrainSettings) -> dict:
    inputs = {"model": tiny / "parent", "corpus": corpus}
    return continue_pretraining(CptSettings(keep_best=False, train=settings), inputs, run)


def test_a_spike_is_gone_back_from_and_its_batch_left_out(tiny: Path, tmp_path: Path) -> None:
    corpus = spoilt_corpus(tiny, tmp_path / "corpus", step=10)
    run = stage_run(tmp_path / "whole")
    metrics = continued(tiny, corpus, run, WATCHED)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    # After 10 steps the snapshots are of 6 and 9: back to 6, and 5 batches are lost.
    assert (metrics["rollbacks"], metrics["lost"]) == (1, 5)
    assert [row["step"] for row in rows] == list(range(1, 16 + 5 + 1))
    assert [row["rollback_to"] for row in rows if "rollback_to" in row] == [6]
    assert rows[10]["lm"] > 1.5 * rows[9]["lm"]
    after, before = rows[11], rows[6]  # the seventh step again: half the rate, other text
    assert after["lr"] == pytest.approx(before["lr"] / 2)
    assert after["lm"] != before["lm"]
    weights = checkpoint.load(run.folder).state_dict()
    for stop_at in (11, 13):
        again = stage_run(tmp_path / f"resumed{stop_at}")
        stopped_at(stop_at, again, lambda run: continued(tiny, corpus, run, WATCHED))
        assert continued(tiny, corpus, stage_run(again.folder), WATCHED) == metrics
        resumed = checkpoint.load(again.folder).state_dict()
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_rollbacks_are_bounded(tiny: Path, tmp_path: Path) -> None:
    corpus = spoilt_corpus(tiny, tmp_path / "corpus", step=10)
    wary = replace(WATCHED, spikes=replace(WATCHED.spikes, spike_mads=1e-3))
    with pytest.raises(ValueError, match="a spike after 2 rollbacks; lower learning_rate"):
        continued(tiny, corpus, stage_run(tmp_path / "out"), wary)


def test_without_a_spike_watching_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    plain = replace(WATCHED, spikes=SpikeSettings())
    watched = continued(tiny, tiny / "corpus", stage_run(tmp_path / "a"), WATCHED)
    assert watched == continued(tiny, tiny / "corpus", stage_run(tmp_path / "b"), plain)


# --- what is trained, and how it is kept ----------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"lora": LoraSettings(lora_rank=4)},
        {"update": UpdateSettings(learning_rate=1e-3, states="int8", master="bf16")},
        {"update": UpdateSettings(learning_rate=1e-3, states="bf16", offload=True)},
    ],
    ids=["lora", "int8", "offload"],
)
def test_it_heals_and_resumes_bitwise(tiny: Path, tmp_path: Path, change: dict) -> None:
    checkpoint.save(student(tiny), tmp_path / "child", like=tiny / "parent")
    inputs = {"child": tmp_path / "child", "parent": tiny / "parent", "corpus": tiny / "corpus"}
    loop = replace(SETTINGS, tokens=256 * 8, heldout_every=4, **change)
    settings = DistillSettings(train=loop)
    metrics = distill(settings, inputs, stage_run(tmp_path / "whole"))
    assert metrics["heldout_kl"] < 0.9 * metrics["before_kl"]
    run = stage_run(tmp_path / "resumed")
    stopped_at(5, run, lambda run: distill(settings, inputs, run))
    stored = dcp.FileSystemReader(run.folder / "resume/step-00000005").read_metadata()
    weights = [name for name in stored.state_dict_metadata if name.startswith("model.")]
    are_factors = [name.endswith((".down", ".up")) for name in weights]
    assert all(are_factors) if loop.lora.lora_rank else not any(are_factors)
    assert distill(settings, inputs, stage_run(run.folder)) == metrics
    whole, resumed = (
        checkpoint.load(tmp_path / name).state_dict() for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_lean_states_end_within_the_spread_of_fp32s_seeds(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_precision, "SMALL_PARAMETER", 0)  # all of so small a model counts
    checkpoint.save(student(tiny), tmp_path / "child", like=tiny / "parent")
    inputs = {"child": tmp_path / "child", "parent": tiny / "parent", "corpus": tiny / "corpus"}

    def healed(name: str, update: UpdateSettings) -> list[float]:
        loop = replace(SETTINGS, tokens=256 * 8, heldout_every=8, update=update)
        settings = DistillSettings(keep_best=False, train=loop)
        runs = [stage_run(tmp_path / f"{name}{seed}", seed=seed) for seed in range(3)]
        return [distill(settings, inputs, run)["heldout_kl"] for run in runs]

    plain = UpdateSettings(learning_rate=1e-3)
    fp32, lean = healed("fp32", plain), healed("int8", replace(plain, states="int8", master="bf16"))
    assert abs(statistics.mean(lean) - statistics.mean(fp32)) <= max(fp32) - min(fp32)
