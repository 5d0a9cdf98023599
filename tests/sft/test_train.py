"""Tuning: added tokens, masks, resume bitwise, packing and cuts that change nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import stage_run, stopped_at
from transformers import AutoTokenizer

from fretsaw.chat.control_tokens import CONTROL_TOKENS
from fretsaw.chat.format import require_chat_format
from fretsaw.chat.llama3_template import write_chat_template
from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.toggle import toggle_of
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data.pack import pack
from fretsaw.data.world import conversations
from fretsaw.sft.examples import batch_examples, encode
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.train import heldout_losses, tune
from fretsaw.talk.loaded import LoadedModel
from fretsaw.training.losses import packed_logprobs
from fretsaw.training.settings import UpdateSettings

SETTINGS = SftSettings(
    source="world",
    num_rows=40,
    seq_len=256,
    batch_tokens=1024,
    micro_batch_tokens=512,
    heldout_share=0.2,
    heldout_every=2,
    epochs=2,
    update=UpdateSettings(optimizer="muon", learning_rate=5e-3),
)


def examples_of(tiny: Path, tmp_path: Path) -> tuple:
    metrics = tune(replace(SETTINGS, epochs=1), {"model": tiny / "parent"}, stage_run(tmp_path))
    model, tokenizer = checkpoint.load(tmp_path), Tokenizer.from_folder(tmp_path)
    examples, _ = encode(conversations(0, "train", 12), NemotronFormat(tokenizer), 256, "refuse")
    return model, tokenizer, examples, metrics


def test_the_format_is_added_and_recorded(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer, _, metrics = examples_of(tiny, tmp_path)
    before = checkpoint.read_config(tiny / "parent")
    assert metrics["added_tokens"] == list(CONTROL_TOKENS)
    assert model.config.vocab_size == before.vocab_size + 3 == tokenizer.vocab_size
    assert model.config.eos_token_ids[0] == tokenizer.token_id("<|eot_id|>")
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(model.config.eos_token_ids)
    again = tune(replace(SETTINGS, epochs=1), {"model": tmp_path}, stage_run(tmp_path / "again"))
    assert again["added_tokens"] == []


def test_what_is_learnt_is_what_the_chat_template_writes(tiny: Path, tmp_path: Path) -> None:
    """The toggle of a checkpoint stays; one without is taught v1's."""
    examples_of(tiny, tmp_path)
    assert toggle_of(tmp_path) == "v1"
    write_chat_template(tmp_path, "v1.5")
    out = tmp_path / "again"
    tune(replace(SETTINGS, epochs=1), {"model": tmp_path}, stage_run(out))
    assert toggle_of(out) == LoadedModel.from_checkpoint(out).toggle == "v1.5"
    theirs = AutoTokenizer.from_pretrained(out)
    records = list(conversations(0, "train", 12))
    learnt, _ = encode(records, require_chat_format(out, Tokenizer.from_folder(out)), 256, "refuse")
    for record, example in zip(records, learnt, strict=True):
        sent = [{"role": m.role, "content": m.content} for m in record.messages]
        ids = theirs.apply_chat_template(sent, enable_thinking=record.mode == "on")["input_ids"]
        assert list(example.token_ids) == ids


def test_new_rows_are_the_mean_of_the_old(tiny: Path) -> None:
    decoder = checkpoint.load(tiny / "parent")
    wider = decoder.with_vocab(decoder.config.vocab_size + 2, (5,))
    old, new = decoder.model.embed_tokens.weight, wider.model.embed_tokens.weight
    assert torch.equal(new[:-2], old)
    torch.testing.assert_close(new[-1], old.mean(0))
    assert wider.config.eos_token_ids == (5,)


def test_it_learns_both_modes(tiny: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, num_rows=120, epochs=3)
    metrics = tune(settings, {"model": tiny / "parent"}, stage_run(tmp_path))
    for mode in ("on", "off"):
        assert metrics[f"heldout_loss_{mode}"] < 0.7 * metrics[f"before_loss_{mode}"]


@pytest.mark.parametrize("stop_at", range(1, 6))
def test_a_stopped_run_ends_bitwise_as_one_that_never_stopped(
    tiny: Path, tmp_path: Path, stop_at: int
) -> None:
    def go(run):
        return tune(SETTINGS, {"model": tiny / "parent"}, run)

    whole = go(stage_run(tmp_path / "whole"))
    stopped_at(stop_at, stage_run(tmp_path / "resumed"), go)
    assert whole["steps"] > 5
    assert go(stage_run(tmp_path / "resumed")) == whole
    weights = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("whole", "resumed")]
    assert weights[0] == weights[1]


def test_packing_changes_no_loss(tiny: Path, tmp_path: Path) -> None:
    model, _, examples, _ = examples_of(tiny, tmp_path)
    rows = pack([len(e.token_ids) for e in examples], 256)
    batch = batch_examples(examples, rows, 256)
    packed = packed_logprobs(model, *batch.arrays, dtype="fp32")
    pieces = packed.split([sum(examples[i].loss_mask[1:]) for i in batch.indices])
    for i, piece in zip(batch.indices, pieces, strict=True):
        ids = torch.tensor([examples[i].token_ids])
        logprobs = model(ids[:, :-1]).log_softmax(-1)[0]
        alone = logprobs.gather(-1, ids[0, 1:, None])[:, 0]
        mask = torch.tensor(examples[i].loss_mask[1:])
        torch.testing.assert_close(piece, alone[mask], rtol=0, atol=1e-5)


def test_heldout_loss_does_not_depend_on_the_cut(tiny: Path, tmp_path: Path) -> None:
    model, _, examples, _ = examples_of(tiny, tmp_path)
    whole = heldout_losses(model, examples, 256, 8, "fp32")
    assert whole.keys() == {"loss_on", "loss_off"}
    assert heldout_losses(model, examples, 512, 1, "fp32") == pytest.approx(whole, rel=1e-5)


def write(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def row(question: str, answer: str = "2") -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "mode": "off"}


def test_a_row_longer_than_the_context_is_refused_or_skipped(tiny: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *(row(f"{i} + 1?") for i in range(20)), row("long " * 300))
    inputs = {"model": tiny / "parent", "data": data}
    files = replace(SETTINGS, source="files", heldout_share=0.0)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 21: \d+ tokens, but a row holds 256"):
        tune(files, inputs, stage_run(tmp_path / "refused"))
    skipping = replace(files, too_long="skip")
    assert tune(skipping, inputs, stage_run(tmp_path / "skipped"))["rows_skipped"] == 1
    with pytest.raises(ValueError, match="seq_len 5000: the model's context is 1024"):
        tune(replace(files, seq_len=5000), inputs, stage_run(tmp_path / "too-long"))


def test_without_rows_or_tokenizer_nothing_begins(tiny: Path, tmp_path: Path) -> None:
    files = replace(SETTINGS, source="files")
    with pytest.raises(ValueError, match="no conversations; give --data"):
        tune(files, {"model": tiny / "parent"}, stage_run(tmp_path / "a"))
    checkpoint.save(checkpoint.load(tiny / "parent"), tmp_path / "bare")
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        tune(SETTINGS, {"model": tmp_path / "bare"}, stage_run(tmp_path / "b"))


def test_a_vocabulary_without_the_tags_is_refused(data_folder: Path, tmp_path: Path) -> None:
    characters = data_folder / "models" / "babyllama-char105"
    with pytest.raises(ValueError, match="use a checkpoint whose vocabulary has every byte"):
        tune(SETTINGS, {"model": characters}, stage_run(tmp_path))
