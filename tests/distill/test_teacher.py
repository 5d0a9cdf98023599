"""The cached teacher: with k = vocabulary it is the live one; another's cache is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import stage_run, stopped_at, swap_tokens

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.corpus.build import build
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.data import loader
from fretsaw.distill.settings import DistillSettings, TeachSettings, TrainSettings
from fretsaw.distill.teacher import CachedTeacher, teach
from fretsaw.distill.train import distill
from fretsaw.stage import artifact, whole
from fretsaw.stage.execute import StageRun
from fretsaw.training.losses import top_k
from fretsaw.training.settings import UpdateSettings

TEACH = TeachSettings(
    tokens=2048, seq_len=64, top_k=16, heldout_tokens=256, micro_batch_tokens=256, shard_tokens=640
)
LOOP = TrainSettings(
    tokens=2048,
    batch_tokens=512,
    micro_batch_tokens=256,
    seq_len=64,
    heldout_tokens=256,
    update=UpdateSettings(learning_rate=5e-4),
)
SETTINGS = DistillSettings(cosine_weight=0, keep_best=False, train=LOOP)


@pytest.fixture(scope="module")
def child(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("child") / "child"
    decoder = checkpoint.load(tiny / "parent")
    with torch.no_grad():
        decoder.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(0.5)
    checkpoint.save(decoder, folder, like=tiny / "parent")
    return folder


def made(tiny: Path, out: Path, settings: TeachSettings = TEACH, *, seed: int = 0) -> Path:
    """Make a finished cache, manifest and all."""
    inputs = {"parent": tiny / "parent", "corpus": tiny / "corpus"}
    request = artifact.StageRequest.of("teach", settings, inputs, seed)
    metrics = teach(settings, inputs, stage_run(artifact.open_partial(out, request), seed=seed))
    artifact.complete(out, request, metrics, seconds=0, extra={})
    return out


def healed(tiny: Path, run: StageRun, child: Path, **inputs: Path) -> dict[str, Any]:
    corpus = {"corpus": tiny / "corpus"}
    return distill(SETTINGS, {"child": child, **corpus, **inputs}, run)


def test_the_whole_vocabulary_teaches_as_the_live_parent(
    tiny: Path, child: Path, tmp_path: Path
) -> None:
    vocab = checkpoint.read_config(tiny / "parent").vocab_size
    cache = made(tiny, tmp_path / "cache", replace(TEACH, top_k=vocab))
    live = healed(tiny, stage_run(tmp_path / "live"), child, parent=tiny / "parent")
    cached = healed(
        tiny, stage_run(tmp_path / "cached"), child, teacher=cache, parent=tiny / "parent"
    )
    # float16 rounds a log-probability of 8 to 1 in 2000.
    assert cached["heldout_kl"] == pytest.approx(live["heldout_kl"], rel=2e-2)
    assert cached["heldout_kl"] < 0.8 * cached["before_kl"]


def test_few_tokens_teach_too_and_say_at_most_the_whole(
    tiny: Path, child: Path, tmp_path: Path
) -> None:
    cache = made(tiny, tmp_path / "cache")
    live = healed(tiny, stage_run(tmp_path / "live"), child, parent=tiny / "parent")
    cached = healed(
        tiny, stage_run(tmp_path / "cached"), child, teacher=cache, parent=tiny / "parent"
    )
    assert 0.5 * live["before_kl"] < cached["before_kl"] <= live["before_kl"] * 1.01
    assert cached["heldout_kl"] < 0.8 * cached["before_kl"]


def test_what_is_stored_is_what_the_parent_says(tiny: Path, tmp_path: Path) -> None:
    folder = made(tiny, tmp_path / "cache")
    cache = CachedTeacher(folder)
    tokens = loader.read_tokens(tiny / "corpus/train.npy")
    windows = loader.order(loader.num_windows(tokens, 64), 8, seed=0, step=2)  # LOOP's third step
    stored = cache.rows(windows, "cpu")
    parent = checkpoint.load(tiny / "parent")
    ids = torch.from_numpy(loader.gather(tokens, windows, 64))[:, :-1]
    with torch.no_grad():
        whole = parent(ids).log_softmax(-1)
    torch.testing.assert_close(
        stored.log_probs[..., :-1], whole.gather(-1, stored.ids), rtol=1e-3, atol=2e-3
    )
    rest = whole.exp().scatter(-1, stored.ids, 0.0).sum(-1)
    torch.testing.assert_close(stored.log_probs[..., -1].exp(), rest, rtol=1e-2, atol=1e-5)
    total = stored.log_probs.exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
    stated = artifact.read_manifest(folder)["metrics"]
    files = sum(np.load(path).nbytes for path in folder.glob("*-0*.npy"))
    assert files == stated["tokens"] * stated["bytes_per_token"]
    assert stated["bytes_per_token"] == 2 * 17 + 2 * 16


def test_it_resumes_at_the_file_it_was_at(tiny: Path, tmp_path: Path) -> None:
    inputs = {"parent": tiny / "parent", "corpus": tiny / "corpus"}
    teach(TEACH, inputs, stage_run(tmp_path / "whole"))
    run = stage_run(tmp_path / "resumed")
    stopped_at(2, run, lambda run: teach(TEACH, inputs, run))
    first = (run.folder / "train-00000-ids.npy").stat().st_mtime_ns
    teach(TEACH, inputs, stage_run(run.folder))
    assert (run.folder / "train-00000-ids.npy").stat().st_mtime_ns == first
    for path in sorted((tmp_path / "whole").glob("*.npy")):
        assert path.read_bytes() == (run.folder / path.name).read_bytes()


def other_parent(tiny: Path, tmp_path: Path, child: Path) -> dict[str, Path]:
    return {"parent": child}


def other_corpus(tiny: Path, tmp_path: Path, child: Path) -> dict[str, Path]:
    settings = CorpusSettings(source="world", max_tokens=9_000, heldout_tokens=1024, vocab_size=300)
    build(settings, {}, stage_run(tmp_path / "corpus"))
    return {"corpus": tmp_path / "corpus"}


def other_tokenizer(tiny: Path, tmp_path: Path, child: Path) -> dict[str, Path]:
    checkpoint.save(checkpoint.load(child), tmp_path / "child", like=child)
    swap_tokens(tmp_path / "child")
    return {"child": tmp_path / "child"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (other_parent, "another parent"),
        (other_corpus, "another corpus"),
        (other_tokenizer, "another tokenizer"),
    ],
)
def test_the_cache_of_something_else_is_refused(
    tiny: Path, child: Path, tmp_path: Path, change: Callable[..., dict[str, Path]], match: str
) -> None:
    inputs = {name: tiny / name for name in ("parent", "corpus")}
    inputs |= {"child": child, "teacher": made(tiny, tmp_path / "cache")}
    with pytest.raises(ValueError, match=match):
        distill(SETTINGS, inputs | change(tiny, tmp_path, child), stage_run(tmp_path / "out"))


@pytest.mark.parametrize(
    ("settings", "seed", "match"),
    [
        (replace(SETTINGS, cosine_weight=1.0), 0, "no hidden states"),
        (replace(SETTINGS, train=replace(LOOP, seq_len=32)), 0, "rows of 64 tokens"),
        (replace(SETTINGS, train=replace(LOOP, tokens=4096)), 0, "32 of the windows that seed 0"),
        (SETTINGS, 1, "--seed 1 --tokens 2048"),
        (replace(SETTINGS, train=replace(LOOP, heldout_tokens=512)), 0, "at most 256"),
        (
            replace(SETTINGS, train=replace(LOOP, lengths=("seq_len=128,tokens=512",))),
            0,
            "one length",
        ),
    ],
)
def test_a_run_that_the_cache_does_not_cover_is_refused(
    tiny: Path, child: Path, tmp_path: Path, settings: DistillSettings, seed: int, match: str
) -> None:
    inputs = {name: tiny / name for name in ("parent", "corpus")}
    inputs |= {"child": child, "teacher": made(tiny, tmp_path / "cache")}
    with pytest.raises(ValueError, match=match):
        distill(settings, inputs, stage_run(tmp_path / "out", seed=seed))


def test_the_parent_is_found_behind_the_child(tiny: Path, child: Path, tmp_path: Path) -> None:
    """A child that was assembled, selected and healed still tells whose it is."""
    inputs = {"corpus": tiny / "corpus", "teacher": made(tiny, tmp_path / "cache")}
    at = child
    for stage, name, more in (
        ("assemble", "model", {"parent": tiny / "parent"}),
        ("select", "assembled", {}),
        ("distill", "child", {"teacher": inputs["teacher"]}),
    ):
        before, at = at, tmp_path / stage
        checkpoint.save(checkpoint.load(child), at, like=child)
        request = artifact.StageRequest.of(stage, SETTINGS, {name: before, **more}, 0)
        whole.write_json(at / artifact.MANIFEST, {**request.identity(), "schema": 1,
            "inputs": {n: {"path": str(p), "hash": artifact.hash_path(p)}
                       for n, p in request.inputs.items()},
            "outputs": {}, "versions": {}, "metrics": {},
            "run": {"wall_s": 1.0, "finished": ""}})  # fmt: skip
    distill(SETTINGS, {"child": at, **inputs}, stage_run(tmp_path / "healed"))
    with pytest.raises(ValueError, match=r"nothing tells its parent.*give --parent"):
        distill(SETTINGS, {"child": child, **inputs}, stage_run(tmp_path / "unknown"))


def test_top_k_of_chunks_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head = torch.randn(37, 8), torch.randn(30, 8)
    whole = top_k(hidden, head, 5)
    monkeypatch.setattr("fretsaw.training.losses.MAX_LOGITS", 30 * 4)
    for a, b in zip(whole, top_k(hidden, head, 5), strict=True):
        torch.testing.assert_close(a, b)
