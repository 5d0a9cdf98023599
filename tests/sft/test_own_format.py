"""Tuning a checkpoint that speaks by its own template: what it has stays, a toggle comes to it."""

import json
import shutil
from pathlib import Path

import foreign
import pytest
from support import stage_run
from transformers import AutoTokenizer

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.eval.evaluate import evaluate
from fretsaw.eval.settings import EvalSettings
from fretsaw.sft.doctor import preview
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.train import tune
from fretsaw.talk.loaded import LoadedModel

SETTINGS = SftSettings(
    source="world", num_rows=12, seq_len=256, batch_tokens=1024, micro_batch_tokens=512
)
EVAL = EvalSettings(task="word_problems", num_problems=4, max_new_tokens=4)


@pytest.fixture(scope="module")
def chatml(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a ChatML checkpoint, with settings that others read."""
    folder = tmp_path_factory.mktemp("chatml") / "parent"
    shutil.copytree(tiny / "parent", folder)
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<pad>"])
    model = checkpoint.load(folder).with_vocab(tokenizer.vocab_size, (tokenizer.vocab_size - 2,))
    checkpoint.write(model, folder, tokenizer=tokenizer)
    for name in ("chat_template.jinja", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    own = json.loads(path.read_text())
    own |= {"eos_token": "<|im_end|>", "pad_token": "<pad>", "model_max_length": 123}
    path.write_text(json.dumps({**own, "chat_template": foreign.CHATML}))
    return folder


@pytest.fixture(scope="module")
def tuned(chatml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    assert tune(SETTINGS, {"model": chatml}, stage_run(folder))["added_tokens"] == []
    return folder


def test_tokens_template_and_ends_stay_as_they_were(chatml: Path, tuned: Path) -> None:
    assert (tuned / "tokenizer.json").read_bytes() == (chatml / "tokenizer.json").read_bytes()
    before, after = (
        json.loads((folder / "tokenizer_config.json").read_text()) for folder in (chatml, tuned)
    )
    assert after == before | {"reasoning_toggle": "v1"}
    config, old = checkpoint.read_config(tuned), checkpoint.read_config(chatml)
    assert config.vocab_size == old.vocab_size
    end = Tokenizer.from_folder(tuned).token_id("<|im_end|>")
    assert config.eos_token_ids[0] == old.eos_token_ids[0] == end
    theirs = AutoTokenizer.from_pretrained(tuned)
    assert (theirs.pad_token, theirs.eos_token) == ("<pad>", "<|im_end|>")
    assert theirs.model_max_length == 123


def test_the_toggle_is_taught_and_asked_for_in_its_system_turn(chatml: Path, tuned: Path) -> None:
    assert LoadedModel.from_checkpoint(chatml).toggle == "none"
    model = LoadedModel.from_checkpoint(tuned)
    assert model.toggle == "v1"
    told = preview(SETTINGS, {"model": chatml}, seed=0)
    assert "the checkpoint's own chat template; no token is added; the mode is told by" in told
    assert "chat template; no token is added" in preview(SETTINGS, {"model": tuned}, seed=0)


def test_only_the_modes_that_a_checkpoint_has_are_evaluated(
    chatml: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = {"model": tuned, "parent": chatml}
    metrics = evaluate(EVAL, inputs, stage_run(tmp_path))
    assert {"accuracy_on", "accuracy_off"} <= metrics.keys()
    results = json.loads((tmp_path / "results.json").read_text())
    [figures] = results["tasks"].values()
    assert figures["child"].keys() == {"on", "off", "difference"}
    assert figures["parent"].keys() == {"off"}
    told = capsys.readouterr().err
    assert (
        "eval: parent: problems are put in the checkpoint's own chat template, reasoning off"
        in told
    )
    assert ", for it has no toggle" in told


def test_a_template_that_cannot_be_learnt_from_is_refused_before_any_step(
    chatml: Path, tmp_path: Path
) -> None:
    shutil.copytree(chatml, tmp_path / "parent")
    template = foreign.CHATML.replace("turn.content +", "(turn.content.split('</think>')|last) +")
    (tmp_path / "parent" / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="can be served, but not tuned in its own format"):
        tune(SETTINGS, {"model": tmp_path / "parent"}, stage_run(tmp_path / "out"))


def test_a_checkpoint_without_a_format_keeps_its_other_settings(tiny: Path, tmp_path: Path) -> None:
    """Llama 3's tokens and template come to it; its padding token and length stay, again too."""
    shutil.copytree(tiny / "parent", tmp_path / "parent")
    path = tmp_path / "parent" / "tokenizer_config.json"
    own = json.loads(path.read_text()) | {"pad_token": "<s>", "model_max_length": 77}
    path.write_text(json.dumps(own))
    before = tmp_path / "parent"
    for name in ("once", "again"):
        tune(SETTINGS, {"model": before}, stage_run(tmp_path / name))
        before = tmp_path / name
        told = json.loads((before / "tokenizer_config.json").read_text())
        assert (told["pad_token"], told["model_max_length"]) == ("<s>", 77)
        assert (told["eos_token"], told["reasoning_toggle"]) == ("<|eot_id|>", "v1")
        assert AutoTokenizer.from_pretrained(before).pad_token == "<s>"
    once, again = (
        (tmp_path / name / "chat_template.jinja").read_bytes() for name in ("once", "again")
    )
    assert once == again
