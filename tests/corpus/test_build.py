"""The corpus stage on every source that needs no network."""

from pathlib import Path

import numpy as np
import pytest
from support import stage_run

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.corpus.build import build
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.data import loader
from fretsaw.engine.engine import Engine
from fretsaw.engine.sequence import Event, RequestFailed


def test_files_give_tokens_of_the_parents_tokenizer(tiny: Path, tmp_path: Path) -> None:
    text = "Tom has 12 pens. He buys 7 more.<|endoftext|>Ben goes home. " * 100
    (tmp_path / "text.txt").write_text(text)
    inputs = {"parent": tiny / "parent", "data": tmp_path / "text.txt"}
    settings = CorpusSettings(max_tokens=2000, heldout_tokens=300, seq_len=64)
    metrics = build(settings, inputs, stage_run(tmp_path / "out"))
    train = loader.read_tokens(tmp_path / "out" / "train.npy")
    heldout = loader.read_tokens(tmp_path / "out" / "heldout.npy")
    assert (len(train), len(heldout)) == (metrics["train_tokens"], metrics["heldout_tokens"])
    tokenizer = Tokenizer.from_folder(tiny / "parent")
    whole = np.concatenate([train, heldout]).tolist()
    first = [tokenizer.bos_token_id, *tokenizer.encode("Tom has 12 pens. He buys 7 more.")]
    assert whole[: len(first)] == first


def test_the_parents_own_text_is_sampled_from_it(tiny: Path, tmp_path: Path) -> None:
    settings = CorpusSettings(
        source="self", max_tokens=3000, heldout_tokens=300, seq_len=64, sample_length=40
    )
    build(settings, {"parent": tiny / "parent"}, stage_run(tmp_path / "a"))
    build(settings, {"parent": tiny / "parent"}, stage_run(tmp_path / "b"))
    train = loader.read_tokens(tmp_path / "a" / "train.npy")
    assert np.array_equal(train, loader.read_tokens(tmp_path / "b" / "train.npy"))
    bos = checkpoint.read_config(tiny / "parent").bos_token_id
    assert train[0] == bos
    assert (train == bos).sum() > 40  # many texts, each from its own bos


def test_texts_that_fail_are_left_out_unless_all_do(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    settings = CorpusSettings(
        source="self", max_tokens=3000, heldout_tokens=300, seq_len=64, sample_length=40
    )
    events = Engine.generate

    def generate(self: Engine, requests, **more):
        for event in events(self, requests, **more):
            is_bad = event.request >= least and event.finish_reason is not None
            yield Event(event.request, None, 0.0, "error", error="not finite") if is_bad else event

    monkeypatch.setattr(Engine, "generate", generate)
    least = 100
    build(settings, {"parent": tiny / "parent"}, stage_run(tmp_path / "a"))
    assert "corpus: 28 of 128 texts failed: not finite; they are left" in capsys.readouterr().err
    least = 0
    with pytest.raises(RequestFailed, match="corpus: 128 of 128 texts failed: not finite"):
        build(settings, {"parent": tiny / "parent"}, stage_run(tmp_path / "b"))


def test_a_trained_tokenizer_ends_its_documents(tiny: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny / "corpus")
    train = loader.read_tokens(tiny / "corpus" / "train.npy").tolist()
    at = [i for i, token_id in enumerate(train) if token_id == tokenizer.bos_token_id]
    assert all(train[i - 1] in tokenizer.eos_token_ids for i in at[1:])


def test_a_source_without_what_it_needs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --data FILES"):
        build(CorpusSettings(), {}, stage_run(tmp_path))
    with pytest.raises(ValueError, match="needs both"):
        CorpusSettings(source="hub")
