"""Tuning by factors: the base stays, the adapter is PEFT's, merged or not it is one network."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support import stage_run, stopped_at
from transformers import AutoModelForCausalLM

from fretsaw.chat.toggle import toggle_of
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.hub import resolve
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.train import tune
from fretsaw.training.settings import LoraSettings, UpdateSettings

SETTINGS = SftSettings(
    source="world",
    num_rows=40,
    seq_len=256,
    batch_tokens=1024,
    micro_batch_tokens=512,
    heldout_share=0.2,
    heldout_every=2,
    update=UpdateSettings(learning_rate=1e-2),
)
LORA = replace(SETTINGS, lora=LoraSettings(lora_rank=4), num_rows=80)
ADAPTER = replace(LORA, saved="adapter")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def chat(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the chat format's tokens."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    tune(SETTINGS, {"model": tiny / "parent"}, stage_run(folder))
    return folder


def test_the_adapter_merged_and_as_peft_applies_it_is_one_network(
    chat: Path, tmp_path: Path
) -> None:
    merged = tune(LORA, {"model": chat}, stage_run(tmp_path / "merged"))
    adapter = tune(ADAPTER, {"model": chat}, stage_run(tmp_path / "adapter"))
    assert adapter == merged
    assert adapter["heldout_loss_on"] < adapter["before_loss_on"]
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert toggle_of(tmp_path / "adapter") == "v1"
    ids = torch.arange(20)[None] + 100
    base = AutoModelForCausalLM.from_pretrained(chat, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        logits = checkpoint.load(tmp_path / "merged")(ids)
        ours = checkpoint.load(resolve(tmp_path / "adapter"))(ids)
        torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs(ids).logits, logits, rtol=0, atol=1e-4)
        assert not torch.allclose(checkpoint.load(chat)(ids), logits, atol=1e-2)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_stopped_run_ends_bitwise_as_one_that_never_stopped(
    chat: Path, tmp_path: Path, stop_at: int
) -> None:
    settings = replace(ADAPTER, keep_best=True)

    def go(run):
        return tune(settings, {"model": chat}, run)

    whole = go(stage_run(tmp_path / "whole"))
    stopped_at(stop_at, stage_run(tmp_path / "resumed"), go)
    assert go(stage_run(tmp_path / "resumed")) == whole
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_tokens_that_no_factor_could_tell_apart_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lora_rank: 4, but the checkpoint lacks <\|start_header"):
        tune(LORA, {"model": tiny / "parent"}, stage_run(tmp_path))


def test_an_adapter_of_an_adapter_is_refused(chat: Path, tmp_path: Path) -> None:
    few = replace(ADAPTER, num_rows=20)
    tune(few, {"model": chat}, stage_run(tmp_path / "first"))
    applied = resolve(tmp_path / "first")
    with pytest.raises(ValueError, match="make a checkpoint of it with `fretsaw export`"):
        tune(few, {"model": applied}, stage_run(tmp_path / "second"))
    merged = replace(few, saved="merged")
    assert tune(merged, {"model": applied}, stage_run(tmp_path / "third"))["steps"] > 0


def test_settings_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="saved: 'adapter', but lora_rank is 0"):
        SftSettings(saved="adapter")
    with pytest.raises(ValueError, match="keep_best: true, but heldout_share is 0"):
        SftSettings(keep_best=True, heldout_share=0.0)
    with pytest.raises(ValueError, match=r"weights: \(0.0,\); each is above 0"):
        SftSettings(weights=(0.0,))
