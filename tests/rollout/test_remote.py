"""Rollouts at a server are those of the embedded engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Remote, remote, write_toggled

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.engine import Engine
from fretsaw.engine.sequence import Request
from fretsaw.rollout.remote import RemoteEngine
from fretsaw.rollout.sample import sample_groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "model"
    folder.mkdir()
    write_toggled(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Remote]:
    with remote(folder) as running:
        yield running


def test_samples_are_those_of_the_embedded_engine(folder: Path, server: Remote) -> None:
    decoder = checkpoint.load(folder)
    prompts = [(5, 6, 7), tuple(range(10, 40))]
    options = {"group_size": 3, "max_tokens": 12, "temperature": 1.0, "seed": 4}
    stop = (*decoder.config.eos_token_ids, 30)
    there = sample_groups(RemoteEngine(server.url), prompts, stop_token_ids=stop, **options)
    here = sample_groups(Engine(decoder), prompts, stop_token_ids=stop, **options)
    for theirs, ours in zip(there, here, strict=True):
        assert (theirs.token_ids, theirs.is_finished) == (ours.token_ids, ours.is_finished)
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-4)


def test_a_refusal_is_told(server: Remote) -> None:
    with pytest.raises(ValueError, match=r"the server refused \(400\): .*token"):
        list(RemoteEngine(server.url).generate([Request((10**6,), 1)]))
    with pytest.raises(ValueError, match=r"the server refused \(404\): .*nobody"):
        list(RemoteEngine(server.url, model="nobody").generate([Request((1,), 1)]))


def test_an_address_that_does_not_answer_is_named() -> None:
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9/v1/models: no answer"):
        RemoteEngine("http://127.0.0.1:9/v1", timeout_s=1)
