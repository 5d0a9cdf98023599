"""The other paths: models, tokens, health, metrics, the page's picture."""

import json
from pathlib import Path

import pytest
from serving import CONTEXT, Local, asking, local
from support import prompt_ids

from fretsaw.chat.message import Message
from fretsaw.chat.render import render
from fretsaw.engine.sampling import Sampling
from fretsaw.serve.model import default_sampling
from fretsaw.serve.settings import check_origins


def get(server: Local, path: str) -> dict:
    response = server.client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


def test_models(server: Local) -> None:
    card = get(server, "/v1/models/toggled")
    assert get(server, "/v1/models") == {"object": "list", "data": [card]}
    assert (card["id"], card["object"], card["owned_by"]) == ("toggled", "model", "fretsaw")
    assert (card["max_model_len"], card["weights_version"]) == (CONTEXT, 0)
    assert card["reasoning_toggle"] == "v1"
    assert server.client.get("/v1/models/other/name").status_code == 404


def test_the_architecture(server: Local) -> None:
    found = get(server, "/architecture")
    block = {"attention": "gqa2", "ffn": "ffn128", "kv_heads": 2, "ffn_width": 128}
    assert found["blocks"] == [block] * 2
    assert found["params"] == sum(p.numel() for p in server.engine.decoder.parameters())
    assert (found["hidden_size"], found["context"]) == (64, CONTEXT)


@pytest.mark.parametrize("text", ["Hello, ünï 😀", "<s>Blue.<|eot_id|>", ""])
def test_tokens_there_and_back(server: Local, text: str) -> None:
    tokenizer = server.service.model.tokenizer
    found = server.post("/tokenize", {"prompt": text, "add_special_tokens": False})
    assert found["tokens"] == tokenizer.encode_raw(text)
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), CONTEXT)
    assert server.post("/detokenize", {"tokens": found["tokens"]}) == {"prompt": text}
    with_bos = server.post("/tokenize", {"prompt": text})["tokens"]
    assert with_bos[0] == tokenizer.bos_token_id
    if text and not text.startswith("<s>"):
        assert with_bos[1:] == found["tokens"]
    spelled = server.post("/tokenize", {"prompt": text, "parse_special": False})["tokens"]
    assert tokenizer.decode(spelled) == text


def test_the_tokens_of_a_conversation(server: Local) -> None:
    tokenizer, turns = server.service.model.tokenizer, [Message("user", "Hello!")]
    body = {"messages": asking("Hello!")["messages"]}
    assert server.post("/tokenize", body)["tokens"] == list(prompt_ids(tokenizer, turns, "on"))
    off = server.post("/tokenize", {**body, "reasoning_effort": "none"})["tokens"]
    assert off == list(prompt_ids(tokenizer, turns, "off"))
    alone = server.post("/tokenize", {**body, "add_generation_prompt": False})
    assert alone["tokens"] == [i for s in render(tokenizer, turns, "on") for i in s.token_ids]
    named = server.post("/tokenize", {**body, "return_token_strs": True})["token_strs"]
    assert named[:2] == ["<s>", "<|start_header_id|>"]
    for wrong in ({}, {**body, "prompt": "a"}):
        assert server.client.post("/tokenize", json=wrong).json()["error"]["param"] == "prompt"


def test_ids_out_of_range(server: Local) -> None:
    response = server.client.post("/detokenize", json={"tokens": [1, 9999]})
    assert response.json()["error"]["param"] == "tokens"


def test_the_tokenizers_info(server: Local) -> None:
    info = get(server, "/tokenizer_info")
    assert (info["bos_token"], info["eos_token"]) == ("<s>", "<|eot_id|>")
    eos = server.post("/tokenize", {"prompt": info["eos_token"], "add_special_tokens": False})
    assert eos["tokens"] == [server.service.model.tokenizer.eos_token_ids[0]]


def test_metrics_count(toggled) -> None:
    with local(toggled) as server:
        usage = server.post("/v1/chat/completions", asking(n=2))["usage"]
        server.client.get("/nowhere/at/all")
        lines = server.client.get("/metrics").text.splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert found['fretsaw_requests_total{path="/v1/chat/completions",status="200"}'] == "1"
        assert found['fretsaw_requests_total{path="other",status="404"}'] == "1"
        assert float(found["fretsaw_prompt_tokens_total"]) == usage["prompt_tokens"]
        assert float(found["fretsaw_generated_tokens_total"]) == usage["completion_tokens"]
        assert found["fretsaw_first_token_seconds_count"] == "2"
        assert found['fretsaw_first_token_seconds_bucket{le="+Inf"}'] == "2"
        assert found["fretsaw_answer_seconds_count"] == "1"
        assert found["fretsaw_open_answers"] == found["fretsaw_pages_used"] == "0"
        assert float(found["fretsaw_pages_total"]) > 0
        names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
        assert all(name.partition("{")[0].startswith("fretsaw_") for name in found)
        assert len(names) == len([line for line in lines if line.startswith("# HELP")])


def test_sampling_as_the_checkpoint_says(tmp_path) -> None:
    def of(raw: dict) -> Sampling:
        (tmp_path / "generation_config.json").write_text(json.dumps(raw))
        return default_sampling(tmp_path)

    assert default_sampling(tmp_path) == of({}) == Sampling(temperature=1.0)
    assert of({"temperature": 0.6, "top_p": 0.95}) == Sampling(temperature=0.6, top_p=0.95)
    assert of({"do_sample": False, "temperature": 0.6}).temperature == 0


def test_a_request_without_a_temperature_samples_as_the_checkpoint_says(toggled) -> None:
    body = {"messages": asking()["messages"], "seed": 1}
    with local(toggled, defaults=Sampling(temperature=0.0)) as greedy:
        answer = greedy.post("/v1/chat/completions", body)["choices"][0]["message"]
        assert answer["content"] == "It is 5."


def test_the_schema_lists_the_paths(server: Local) -> None:
    schema = get(server, "/openapi.json")
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert "thinking_token_budget" in str(body)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 1e300), ("top_k", 10**20), ("repetition_penalty", 0.0)]
)
def test_defaults_that_no_sampler_holds_are_refused_with_their_file(
    tmp_path: Path, name: str, value: float
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(ValueError, match=rf"generation_config.json: {name} .*; correct it there"):
        default_sampling(tmp_path)


ORIGIN = "https://example.org"


def _preflight(origin: str, **more: str) -> dict[str, str]:
    """Return what a browser asks with before it posts JSON to another origin."""
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
        **more,
    }


def test_pages_of_other_origins_are_let_in_only_when_asked(server: Local) -> None:
    told = server.client.get("/v1/models", headers={"origin": ORIGIN})
    assert "access-control-allow-origin" not in told.headers
    asked = server.client.options("/v1/chat/completions", headers=_preflight(ORIGIN))
    assert asked.status_code == 405
    assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize("allowed", [ORIGIN, "*"])
def test_an_allowed_origin(toggled, allowed: str) -> None:
    with local(toggled, api_keys=["key"], allow_origins=[allowed]) as open_one:
        client, post = open_one.client, "/v1/chat/completions"
        asked = client.options(post, headers=_preflight(ORIGIN))  # without the key
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == allowed
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        headers = {"origin": ORIGIN, "authorization": "Bearer key"}
        answers = [
            client.post(post, json=asking(max_tokens=1), headers=headers),
            client.post(post, json=asking(max_tokens=1, stream=True), headers=headers),
            client.post(post, json=asking(top_k=10**20), headers=headers),
            client.post("/v1/nothing", json={}, headers=headers),
            client.get(post, headers=headers),
            client.get("/v1/models", headers={"origin": ORIGIN}),  # without the key
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 400, 404, 405, 401]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == allowed
        if allowed != "*":
            other = client.options(post, headers=_preflight("https://example.com"))
            assert other.status_code == 400
            assert "access-control-allow-origin" not in other.headers


def test_a_fault_of_ours_tells_an_allowed_origin_too(toggled, monkeypatch) -> None:
    with local(toggled, allow_origins=[ORIGIN]) as broken:
        monkeypatch.setattr(type(broken.service.model), "card", lambda *_: 1 / 0)
        answer = broken.client.get("/v1/models", headers={"origin": ORIGIN})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert answer.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin; give a scheme and a host"):
        check_origins([origin])
