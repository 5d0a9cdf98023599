"""Completions: four forms of a prompt, echo, log-probabilities as the forward's, streams."""

import json

import pytest
import torch
from serving import CONTEXT, LESSONS, Local, asking

TEXT = "The sky is one"
PATH = "/v1/completions"


def choices(server: Local, **body) -> list[dict]:
    return server.post(PATH, {"prompt": TEXT, "temperature": 0, "max_tokens": 8, **body})["choices"]


def encoded(server: Local, text: str = TEXT) -> list[int]:
    tokenizer = server.service.model.tokenizer
    assert tokenizer.bos_token_id is not None
    return [tokenizer.bos_token_id, *tokenizer.encode(text)]


def forward_logprobs(server: Local, ids: list[int]) -> torch.Tensor:
    """Return every token's log-probabilities by one plain forward, the first left out."""
    with torch.inference_mode():
        logits = server.engine.decoder(torch.tensor([ids]))[0]
    return logits.float().log_softmax(-1)[:-1]


def continued(server: Local, ids: list[int], num_tokens: int) -> list[int]:
    """Return ids and what plain greedy decoding makes of them, without a cache."""
    for _ in range(num_tokens):
        with torch.inference_mode():
            logits = server.engine.decoder(torch.tensor([ids]))[0, -1]
        ids = [*ids, int(logits.argmax())]
    return ids


def test_the_four_forms_of_a_prompt_are_one(server: Local) -> None:
    ids = encoded(server)
    text = choices(server)[0]["text"]
    for prompt in ([TEXT], ids, [ids]):
        assert [c["text"] for c in choices(server, prompt=prompt)] == [text]
    both = choices(server, prompt=[TEXT, "Blue"])
    assert [c["index"] for c in both] == [0, 1]
    assert [c["text"] for c in both] == [text, choices(server, prompt="Blue")[0]["text"]]
    assert [c["text"] for c in choices(server, prompt=[ids, ids])] == [text] * 2


def test_answers_lie_prompt_by_prompt(server: Local) -> None:
    body = {"temperature": 1.5, "seed": 3, "n": 2}
    both = [c["text"] for c in choices(server, prompt=[TEXT, "Blue"], **body)]
    assert both[:2] == [c["text"] for c in choices(server, **body)]
    assert both[2:] == [c["text"] for c in choices(server, prompt="Blue", **body)]


def test_echo_and_usage(server: Local) -> None:
    plain, echoed = choices(server)[0], choices(server, echo=True)[0]
    assert echoed["text"] == TEXT + plain["text"]
    assert choices(server, prompt=encoded(server), echo=True)[0]["text"] == echoed["text"]
    usage = server.post(PATH, {"prompt": TEXT, "max_tokens": 3, "n": 2})["usage"]
    assert usage["prompt_tokens"] == len(encoded(server))
    assert usage["completion_tokens"] <= 6


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("top", [0, 1, 3])
def test_log_probabilities_are_the_forwards(server: Local, max_tokens: int, top: int) -> None:
    ids = encoded(server)
    body = {"prompt": ids, "echo": True, "logprobs": top, "max_tokens": max_tokens}
    choice = choices(server, ignore_eos=True, **body)[0]
    found = choice["logprobs"]
    assert {len(values) for values in found.values()} == {len(ids) + max_tokens}
    tokens = continued(server, ids, max_tokens)
    expected = forward_logprobs(server, tokens)
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    own = expected.gather(-1, torch.tensor(tokens)[1:, None])[:, 0].tolist()
    assert found["token_logprobs"][1:] == pytest.approx(own, abs=1e-5)
    for at, best in enumerate(found["top_logprobs"][1:]):
        assert found["tokens"][at + 1] in best
        assert top <= len(best) <= top + 1
        if top:
            assert max(best.values()) == pytest.approx(expected[at].max().item(), abs=1e-5)


def test_offsets_point_into_the_text(server: Local) -> None:
    text = "naïve 😀 sky"
    choice = choices(server, prompt=text, echo=True, logprobs=0)[0]
    found = choice["logprobs"]
    assert choice["text"].startswith(text)
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if not token.startswith(("bytes:", "<s>", "<|eot_id|>")):
            assert choice["text"][offset:].startswith(token)
    assert [t for t in found["tokens"] if t.startswith("bytes:")][:2] == [
        "bytes:\\xc3",
        "bytes:\\xaf",
    ]


def test_max_tokens_0_scores_the_prompt_alone(server: Local) -> None:
    choice = choices(server, max_tokens=0)[0]
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == ("", None, "length")
    assert choices(server, max_tokens=0, echo=True)[0]["text"] == TEXT
    full = [5] * CONTEXT  # as long as the context: nothing could follow, but it can be scored
    found = choices(server, prompt=full, max_tokens=0, echo=True, logprobs=1)[0]["logprobs"]
    assert len(found["token_logprobs"]) == CONTEXT


def test_stop_strings_and_stop_tokens(server: Local) -> None:
    asked = {"messages": asking("Hello!")["messages"], "reasoning_effort": "none"}
    prompt = server.post("/tokenize", asked)["tokens"]
    whole = choices(server, prompt=prompt, max_tokens=30)[0]
    assert (whole["text"], whole["finish_reason"]) == (LESSONS["Hello!"][1], "stop")
    cut = choices(server, prompt=prompt, max_tokens=30, stop=["nobody", "end!"])[0]
    assert (cut["text"], cut["finish_reason"]) == ("Hello, fri", "stop")
    comma = server.service.model.tokenizer.encode(",")[0]
    cut = choices(server, prompt=prompt, stop_token_ids=[comma], logprobs=0)[0]
    assert (cut["text"], cut["finish_reason"]) == ("Hello", "stop")
    assert cut["logprobs"]["tokens"][-1] == ","  # the token that stopped it is reported


def test_a_stream_is_the_same_text(server: Local) -> None:
    body = {"prompt": [TEXT, "Blue"], "n": 2, "temperature": 1, "seed": 1, "max_tokens": 12}
    body |= {"echo": True, "logprobs": 1}
    whole = server.post(PATH, body)
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    response = server.client.post(PATH, json=streamed)
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert chunks.pop()["usage"] == whole["usage"]
    parts = [choice for chunk in chunks for choice in chunk["choices"]]
    for choice in whole["choices"]:
        own = [part for part in parts if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        for name, values in choice["logprobs"].items():
            assert [v for part in own for v in part["logprobs"][name]] == values


def test_names_of_special_tokens_in_a_prompt(server: Local) -> None:
    tokenizer = server.service.model.tokenizer
    text = "<|start_header_id|>user"
    named = choices(server, prompt=text, echo=True, logprobs=0)[0]["logprobs"]["tokens"]
    assert named[:2] == ["<s>", "<|start_header_id|>"]
    body = {"parse_special": False, "add_special_tokens": False}
    spelled = choices(server, prompt=text, echo=True, logprobs=0, **body)[0]["logprobs"]["tokens"]
    ids = tokenizer.encode(text)
    assert "".join(spelled[: len(ids)]) == text
    assert len(ids) > 3
    twice = choices(server, prompt=f"<s>{TEXT}")[0]["text"]
    assert twice == choices(server)[0]["text"]  # bos is not put before bos


def test_token_ids_are_told_when_asked(server: Local) -> None:
    ids = encoded(server)
    choice = choices(server, return_token_ids=True, max_tokens=5, ignore_eos=True)[0]
    assert choice["prompt_token_ids"] == ids
    assert choice["token_ids"] == continued(server, ids, 5)[len(ids) :]
    assert "token_ids" not in choices(server)[0]
    chat = server.chat("Hello!", reasoning_effort="none", return_token_ids=True)
    tokenizer = server.service.model.tokenizer
    assert tokenizer.decode(chat["token_ids"]) == LESSONS["Hello!"][1]
