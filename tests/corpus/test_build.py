"""The corpus stage on every source that needs no network."""

import json
import re
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
from support import stage_run

from fretsaw.chat.format import require_chat_format
from fretsaw.chat.message import Message
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.corpus.build import build
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.corpus.sources import cut
from fretsaw.corpus.spool import Spool
from fretsaw.data import loader
from fretsaw.data.sources import split_weights
from fretsaw.engine.engine import Engine
from fretsaw.engine.sequence import Event, RequestFailed


def test_files_give_tokens_of_the_parents_tokenizer(tiny: Path, tmp_path: Path) -> None:
    text = "<|endoftext|>".join(f"Tom has {n} pens. He buys 7 more." for n in range(200))
    (tmp_path / "text.txt").write_text(text)
    inputs = {"parent": tiny / "parent", "data": tmp_path / "text.txt"}
    settings = CorpusSettings(max_tokens=2000, heldout_tokens=300, seq_len=64)
    metrics = build(settings, inputs, stage_run(tmp_path / "out"))
    train = loader.read_tokens(tmp_path / "out" / "train.npy")
    heldout = loader.read_tokens(tmp_path / "out" / "heldout.npy")
    assert (len(train), len(heldout)) == (metrics["train_tokens"], metrics["heldout_tokens"])
    tokenizer = Tokenizer.from_folder(tiny / "parent")
    for part in (train, heldout):
        first = tokenizer.decode(part[:60].tolist()).split(" pens")[0]
        number = int(first.removeprefix("Tom has "))
        text = f"Tom has {number} pens. He buys 7 more."
        wanted = [tokenizer.bos_token_id, *tokenizer.encode(text), *tokenizer.eos_token_ids[:1]]
        assert part[: len(wanted)].tolist() == wanted


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


def test_a_parent_whose_texts_nothing_begins_goes_on_from_the_end_of_another(
    tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny / "parent", tmp_path / "parent")
    path = tmp_path / "parent" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    settings = CorpusSettings(
        source="self", max_tokens=2000, heldout_tokens=200, seq_len=64, sample_length=40
    )
    build(settings, {"parent": tmp_path / "parent"}, stage_run(tmp_path / "out"))
    tokenizer = Tokenizer.from_folder(tmp_path / "parent")
    assert tokenizer.begin_ids == ()
    train = loader.read_tokens(tmp_path / "out" / "train.npy")
    assert (train == tokenizer.token_id("</s>")).sum() > 20


def test_a_chat_model_asks_itself_in_its_own_format(tiny: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(tiny / "parent", parent)
    tokenizer = Tokenizer.from_folder(parent)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    model = checkpoint.load(parent).with_vocab(tokenizer.vocab_size, tokenizer.eos_token_ids)
    checkpoint.write(model, parent, tokenizer=tokenizer)
    (parent / "chat_template.jinja").write_text(foreign.CHATML)
    settings = CorpusSettings(
        source="self", max_tokens=3000, heldout_tokens=300, seq_len=64, sample_length=24
    )
    build(settings, {"parent": parent}, stage_run(tmp_path / "out"))
    train = loader.read_tokens(tmp_path / "out" / "train.npy").tolist()
    documents = tokenizer.decode(train, skip_special=False).split("<|im_start|>system\n")[1:-1]
    assert len(documents) > 10
    for document in documents:
        assert document.startswith("You help.<|im_end|><|im_start|>user\n")
        assert "<|im_end|>\n<|im_start|>assistant\n" in document


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
    least = 60
    build(settings, {"parent": tiny / "parent"}, stage_run(tmp_path / "a"))
    first, *_ = (line for line in capsys.readouterr().err.splitlines() if "failed" in line)
    num_asked = int(first.split(" of ")[1].split()[0])
    assert 60 < num_asked <= 3300 // 40  # no more than may be needed
    assert first == (
        f"corpus: {num_asked - 60} of {num_asked} texts failed: not finite; they are left out"
    )
    least = 0
    with pytest.raises(RequestFailed, match=f"corpus: {num_asked} of {num_asked} texts failed"):
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


def _rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _built(out: Path, inputs: dict[str, Path], **more: Any):
    plain: dict[str, Any] = {"max_tokens": 40_000, "heldout_tokens": 4000, "seq_len": 64}
    settings = CorpusSettings(**(plain | more))
    metrics = build(settings, inputs, stage_run(out))
    return metrics, loader.read_tokens(out / "train.npy"), loader.read_tokens(out / "heldout.npy")


@pytest.fixture
def two(tiny: Path, tmp_path: Path) -> dict[str, Path]:
    stories = [f"Ben met fox number {n} in the wood and they went home. " * 3 for n in range(900)]
    sums = [f"{n} plus {n + 1} makes {2 * n + 1}." for n in range(4000)]
    return {
        "parent": tiny / "parent",
        "data": _rows(tmp_path / "stories.jsonl", stories),
        "data1": _rows(tmp_path / "sums.jsonl", sums),
    }


def test_two_equal_sources_are_in_every_part_and_no_document_on_both_sides(
    two: dict[str, Path], tmp_path: Path
) -> None:
    metrics, train, heldout = _built(tmp_path / "out", two)
    tokenizer = Tokenizer.from_folder(two["parent"])
    for part in (train[:8000], train, heldout):
        text = tokenizer.decode(part.tolist())
        for kind in ("fox", "plus"):
            own = sum(len(one) for one in text.split(".") if kind in one)
            assert 0.3 < own / len(text) < 0.7
    sides = [set(_numbers(tokenizer, part)) for part in (train, heldout)]
    assert min(map(len, sides)) > 10
    assert not sides[0] & sides[1]
    assert json.loads((tmp_path / "out" / "sources.json").read_text()) == metrics["sources"]
    for row in metrics["sources"]:
        assert abs(row["train"]["share"] - 0.5) < 0.02
        assert abs(row["heldout"]["share"] - 0.5) < 0.1
    of_token = np.load(tmp_path / "out" / loader.HELDOUT_SOURCES)
    assert len(of_token) == len(heldout)
    assert np.bincount(of_token).tolist() == [r["heldout"]["tokens"] for r in metrics["sources"]]


def _numbers(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """Return what tells the documents apart, those at a cut left out."""
    documents = "".join(
        "|" if id == tokenizer.bos_token_id else tokenizer.decode([id]) for id in ids.tolist()
    ).split("|")
    return [document for document in documents[1:-1] if document]


def test_weights_are_shares_and_the_same_seed_gives_the_same_bytes(
    two: dict[str, Path], tmp_path: Path
) -> None:
    metrics, *_ = _built(tmp_path / "a", two, weights=(3.0, 1.0))
    _built(tmp_path / "b", two, weights=(3.0, 1.0))
    assert metrics["sources"][0]["train"]["share"] == pytest.approx(0.75, abs=0.02)
    for file in ("train.npy", "heldout.npy", "sources.json", loader.HELDOUT_SOURCES):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with pytest.raises(ValueError, match="weights: 3 for 2 sources"):
        _built(tmp_path / "c", two, weights=(1.0, 1.0, 2.0))


def test_a_source_of_which_little_is_wanted_is_sampled_from_its_beginning_to_its_end(
    tiny: Path, tmp_path: Path
) -> None:
    texts = [f"Fox {n:05d} went home and slept." for n in range(6000)]
    long = ["Fox 99999 " + "sat down. " * 300] * 3  # of which the few that are probed may have none
    inputs = {
        "parent": tiny / "parent",
        "data": _rows(tmp_path / "a.jsonl", [*texts, *long]),
        "data1": _rows(tmp_path / "b.jsonl", [f"{n} plus 1 makes {n + 1}." for n in range(300)]),
    }
    metrics, train, heldout = _built(
        tmp_path / "out", inputs, max_tokens=9000, heldout_tokens=1000, weights=(4.0, 1.0)
    )
    assert len(train) == 9000
    assert 800 < len(heldout) <= 1000
    assert metrics["sources"][0]["train"]["share"] == pytest.approx(0.8, abs=0.04)
    tokenizer = Tokenizer.from_folder(tiny / "parent")
    for part in (train, heldout):
        text = tokenizer.decode(part.tolist())
        found = np.array([int(number) for number in re.findall(r"Fox (\d{5})", text)])
        quarters = np.histogram(found[found < 6000], 4, (0, 6000))[0] / len(found)
        assert quarters.min() > 0.1
        assert np.any(np.diff(found) < 0)  # not in the order of the file


def test_a_large_source_is_read_in_bounded_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    with Spool(tmp_path) as spool:
        for number in range(20_000):
            spool.add(number % 2, number, [number % 500] * 500)  # 40 MB of tokens
        written = spool.write(tmp_path / "train.npy", range(20_000)[::-1], 10**8, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(written) == 20_000
    assert peak < 8e6
    assert loader.read_tokens(tmp_path / "train.npy")[:2].tolist() == [19_999 % 500] * 2


def test_a_file_that_is_one_text_is_cut_at_its_paragraphs(tiny: Path, tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {n}. " + "Tom has pens. " * 20 + "Done." for n in range(400)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    inputs = {"parent": tiny / "parent", "data": tmp_path / "book.txt"}
    metrics, _, _ = _built(tmp_path / "out", inputs, max_tokens=10**6, heldout_tokens=10_000)
    assert metrics["sources"][0]["heldout"]["documents"] >= 1
    parts = list(cut("\n\n".join(paragraphs), 5000))
    assert "\n\n".join(parts) == "\n\n".join(paragraphs).strip()
    assert all(part.startswith("Paragraph") and len(part) <= 5000 for part in parts)


def test_conversations_are_written_in_the_parents_chat_format(tiny: Path, tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n}+1?"},
                {"role": "assistant", "content": "x"},
            ]
        }
        for n in range(300)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = shutil.copytree(tiny / "parent", tmp_path / "chat")
    turn = "{{ turn.role }}: {{ turn.content }}{{ eos_token }}"
    template = "{% for turn in messages %}" + turn + "{% endfor %}"
    (chat / "chat_template.jinja").write_text(template)
    inputs = {"data": tmp_path / "chat.jsonl", "parent": chat}
    _, train, _ = _built(tmp_path / "out", inputs)
    tokenizer = Tokenizer.from_folder(chat)
    format = require_chat_format(chat, tokenizer)
    asked = [Message("user", "7+1?"), Message("assistant", "x")]
    wanted = list(format.conversation_ids(asked, "off"))
    held = loader.read_tokens(tmp_path / "out" / "heldout.npy")
    found = [*train.tolist(), -1, *held.tolist()]
    assert any(found[at : at + len(wanted)] == wanted for at in range(len(found)))
    with pytest.raises(ValueError, match=r"chat\.jsonl, line \d+: a conversation, but"):
        _built(tmp_path / "plain", inputs | {"parent": tiny / "parent"})
    with pytest.raises(ValueError, match="a conversation, but there is no chat format"):
        _built(tmp_path / "none", {"data": tmp_path / "chat.jsonl"})


def test_a_weight_is_a_number_after_the_last_colon(tmp_path: Path) -> None:
    assert split_weights(["a.txt", "b.jsonl:0.3"]) == (["a.txt", "b.jsonl"], (1.0, 0.3))
    assert split_weights(["a.txt:2", "b.txt:2"]) == (["a.txt", "b.txt"], ())
    assert split_weights(["c:/a.txt"]) == (["c:/a.txt"], ())
    (tmp_path / "a:3").write_text("x")
    assert split_weights([str(tmp_path / "a:3")])[0] == [str(tmp_path / "a:3")]
    for bad in ("a.txt:0", "a.txt:-1"):
        with pytest.raises(ValueError, match="give a number above 0"):
            split_weights([bad])
