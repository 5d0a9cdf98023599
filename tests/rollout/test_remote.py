"""Rollouts at a server are those of the embedded engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engines import ask
from scripted import Reply, scripted
from serving import Remote, remote, write_toggled

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Event
from fretsaw.rollout.remote import RemoteSampler
from fretsaw.rollout.sample import sample_groups
from fretsaw.rollout.sampler import Sampler


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
    sampling = Sampling(max_tokens=12, temperature=1.0, seed=4)
    stop = (*decoder.config.eos_token_ids, 30)
    there, here = (
        sample_groups(sampler, prompts, sampling, stop_token_ids=stop, group_size=3)
        for sampler in (RemoteSampler(server.url), Engine(decoder))
    )
    for theirs, ours in zip(there, here, strict=True):
        assert (theirs.token_ids, theirs.is_finished) == (ours.token_ids, ours.is_finished)
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-4)


def test_a_refusal_is_told(server: Remote) -> None:
    with pytest.raises(ValueError, match=r"the server refused \(400\): .*token"):
        list(RemoteSampler(server.url).generate([ask((10**6,), 1)]))
    with pytest.raises(ValueError, match=r"the server refused \(404\): .*nobody"):
        list(RemoteSampler(server.url, model="nobody").generate([ask((1,), 1)]))


def test_an_address_that_does_not_answer_is_named() -> None:
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9/v1/models: no answer"):
        RemoteSampler("http://127.0.0.1:9/v1", timeout_s=1)


def test_a_busy_server_is_asked_again() -> None:
    busy = Reply.of({"error": {"message": "busy"}}, 503, headers={"Retry-After": "0.05"})
    choice = {"token_ids": [4], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "length"}
    with scripted(lambda n, body: Reply.of({"choices": [choice]}) if n else busy) as there:
        engine = RemoteSampler(there.url)
        assert list(engine.generate([ask((1, 2), 1)])) == [Event(0, 4, -1.0, "length")]
    assert [one.body["prompt"] for one in there.posted] == [[1, 2]] * 2
    assert engine.stats().decode_tokens == 1


def test_an_answer_without_token_ids_is_told() -> None:
    for answer in ({}, {"choices": []}, {"choices": [{"text": "hello", "logprobs": None}]}):
        with scripted(lambda n, body, a=answer: Reply.of(a)) as there:
            engine = RemoteSampler(there.url)
            with pytest.raises(ValueError, match="no token ids with their log-probabilities; use"):
                list(engine.generate([ask((1,), 1)]))


def test_it_is_a_sampler_like_the_embedded_engine(folder: Path, server: Remote) -> None:
    engine = Engine(checkpoint.load(folder))
    there: Sampler = RemoteSampler(server.url, stop_ids=engine.stop_ids)
    assert (there.context, there.stop_ids) == (engine.context, engine.stop_ids)
    there.load_weights((), version=3)
    assert there.stats().weight_version == 3
    with pytest.raises(ValueError, match="can't be sent over OpenAI's routes"):
        there.load_weights([("w", torch.zeros(1))], version=4)
    assert there.stats().weight_version == 3
