"""What a client can do wrong: an OpenAI-shaped refusal that names the field; the server goes on."""

import itertools
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Local, asking, local

from fretsaw.engine.sampling import MAX_INTEGER
from fretsaw.serve.protocol import NOT_DONE, ChatRequest, CompletionRequest
from fretsaw.serve.settings import Limits

HELLO = {"role": "user", "content": "Hello!"}


def refusal(server: Local, path: str, body: object, status: int = 400) -> dict:
    """Return the error of a request that must be refused, having checked that the server lives."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    response = server.client.post(path, content=raw, headers=headers)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert server.client.get("/health").json() == {"status": "ok"}
    return error


CHAT = [
    ({"messages": []}, "messages", "empty"),
    ({}, "messages", "required"),
    ({"messages": "Hello!"}, "messages", "give a list"),
    ({"messages": [{"content": "Hello!"}]}, "messages[0].role", "required"),
    ({"messages": [{"role": "human", "content": "a"}]}, "messages[0].role", "'user'"),
    ({"messages": [HELLO, {"role": "user", "content": 5}]}, "messages[1].content", "a string"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content",
        "only text is read",
    ),
    ({"messages": [HELLO], "top_k": 10**20}, "top_k", "give at most 9223372036854775807"),
    ({"messages": [HELLO], "repetition_penalty": 1e-320}, "repetition_penalty", "at least 0.01"),
    ({"messages": [HELLO], "thinking_token_budget": 2**64}, "thinking_token_budget", "at most"),
    ({"messages": [{"role": "user", "content": "long " * 300}]}, "messages", "context is 256"),
    ({"messages": [{**HELLO, "content": "a b" * 99_999}]}, "messages[0].content", "far more than"),
    ({"messages": [HELLO], "max_tokens": -1}, "max_tokens", "-1; give at least 1"),
    ({"messages": [HELLO], "max_tokens": 0}, "max_tokens", "give at least 1"),
    ({"messages": [HELLO], "max_tokens": "9"}, "max_tokens", "give an integer"),
    ({"messages": [HELLO], "max_tokens": 1.5}, "max_tokens", "1.5"),
    ({"messages": [HELLO], "max_tokens": 250}, "max_tokens", "context is 256"),
    ({"messages": [HELLO], "max_completion_tokens": 250}, "max_completion_tokens", "250"),
    ({"messages": [HELLO], "max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "send one"),
    ({"messages": [HELLO], "model": 5}, "model", "give a string"),
    ({"messages": [HELLO], "n": 129}, "n", "give at most 128"),
    ({"messages": [HELLO], "n": 0}, "n", "give at least 1"),
    ({"messages": [HELLO], "n": True}, "n", "give an integer"),
    ({"messages": [HELLO], "temperature": 2.1}, "temperature", "give at most 2"),
    ({"messages": [HELLO], "temperature": -0.1}, "temperature", "give at least 0"),
    ({"messages": [HELLO], "temperature": "hot"}, "temperature", "give a number"),
    ({"messages": [HELLO], "top_p": 0}, "top_p", "give more than 0"),
    ({"messages": [HELLO], "min_p": 2}, "min_p", "give less than 1"),
    ({"messages": [HELLO], "top_k": -2}, "top_k", "give at least -1"),
    ({"messages": [HELLO], "presence_penalty": 3}, "presence_penalty", "give at most 2"),
    ({"messages": [HELLO], "seed": 2**64}, "seed", "give at most"),
    ({"messages": [HELLO], "stop": list("abcdefghijklmnopq")}, "stop", "17 strings; give at most"),
    ({"messages": [HELLO], "stop": [""]}, "stop", "empty"),
    ({"messages": [HELLO], "stop": 5}, "stop", "a string or a list"),
    ({"messages": [HELLO], "stop_token_ids": [9999]}, "stop_token_ids", "no token 9999"),
    ({"messages": [HELLO], "stream": "yes"}, "stream", "true or false"),
    ({"messages": [HELLO], "stream_options": 5}, "stream_options", "give an object"),
    ({"messages": [HELLO], "top_logprobs": 2}, "top_logprobs", "logprobs: true"),
    ({"messages": [HELLO], "logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
    ({"messages": [HELLO], "chat_template": "{{ broken"}, "chat_template", "own format"),
    ({"messages": [HELLO], "response_format": {"type": "json_object"}}, "response_format", "not"),
    ({"messages": [HELLO], "logit_bias": {"5": 1}}, "logit_bias", "not biased"),
    ({"messages": [HELLO], "audio": {"voice": "a"}}, "audio", "text"),
    ({"messages": [HELLO], "temprature": 1}, "temprature", "did you mean temperature?"),
    ({"messages": [HELLO], "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs.a", "no such"),
    (
        {"messages": [HELLO], "chat_template_kwargs": {"enable_thinking": "no"}},
        "chat_template_kwargs.enable_thinking",
        "true or false",
    ),
    ({"messages": [HELLO], "reasoning_effort": "huge"}, "reasoning_effort", "none of none, "),
    ({"messages": [HELLO], "thinking": {"type": "some"}}, "thinking.type", "'enabled'"),
    ({"messages": [HELLO], "thinking_token_budget": -1}, "thinking_token_budget", "at least 0"),
    ({"messages": [HELLO], "stop_scope": "some"}, "stop_scope", "'answer' or 'all'"),
    ({"messages": [HELLO], "tool_choice": "required"}, "tool_choice", "forced"),
    ({"messages": [HELLO], "tools": [{"type": "a"}]}, "tools[0].type", "'function'"),
    (
        {
            "messages": [
                HELLO,
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "a", "arguments": "{"}}],
                },
            ]
        },
        "messages[1].tool_calls[0].function.arguments",
        "JSON object",
    ),
]


@pytest.mark.parametrize(("body", "param", "part"), CHAT)
def test_a_wrong_field_of_a_chat_completion_is_named(server, body, param, part) -> None:
    error = refusal(server, "/v1/chat/completions", body)
    assert error["param"] == param
    assert part in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("roles", ["uu", "au", "us", "ssu", "uat", "t", "s"])
def test_turns_in_any_order_are_answered(server: Local, roles: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    messages = [{"role": names[role], "content": "a", "mood": "glad"} for role in roles]
    body = {"messages": messages, "max_tokens": 2, "stop": [f"\n{i}" for i in range(16)]}
    assert server.post("/v1/chat/completions", body)["choices"]


def test_slashes_and_head(server: Local) -> None:
    for path in ("/health", "/v1/models", "/"):
        head = server.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert server.client.get(f"{path}/").status_code == 200
    assert server.post("/v1/completions/", {"prompt": "a", "max_tokens": 1})["choices"]


def test_an_unknown_model_is_not_found(server: Local) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [HELLO]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/tokenize", {"prompt": "a"}),
    ):
        error = refusal(server, path, {**body, "model": "gpt-9"}, 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "'toggled' is" in error["message"]


@pytest.mark.parametrize(
    ("roles", "param"),
    [
        (("user", "assistant"), "messages"),
        (("assistant",), "messages"),
    ],
)
def test_nothing_to_answer(server: Local, roles: tuple[str, ...], param: str) -> None:
    messages = [{"role": role, "content": "a"} for role in roles]
    error = refusal(server, "/v1/chat/completions", {"messages": messages})
    assert error["param"] == param
    assert error["message"].startswith("messages")


COMPLETION = [
    ({}, "prompt", "required"),
    ({"prompt": []}, "prompt", "empty"),
    ({"prompt": [[]]}, "prompt", "empty list"),
    ({"prompt": [1, "a"]}, "prompt", "list of token ids"),
    ({"prompt": [[1], "a"]}, "prompt", "list of token ids"),
    ({"prompt": [[1, True]]}, "prompt", "list of token ids"),
    ({"prompt": {"a": 1}}, "prompt", "give a text"),
    ({"prompt": [9999]}, "prompt", "no token 9999"),
    ({"prompt": [-1]}, "prompt", "no token -1"),
    ({"prompt": "", "add_special_tokens": False}, "prompt", "empty"),
    ({"prompt": "long " * 300}, "prompt", "context is 256"),
    ({"prompt": "a b" * 99_999}, "prompt", "299997 characters, far more than"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens", "give at least 0"),
    ({"prompt": "a", "max_tokens": 300}, "max_tokens", "give at most"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "give at most 20"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "give an integer"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "not filled in"),
    ({"prompt": "a", "best_of": 2}, "best_of", "send `n`"),
    ({"prompt": ["a"] * 20, "n": 100}, "n", "at most 1024"),
    ({"prompt": "a", "messages": [HELLO]}, "messages", "no such field"),
]


@pytest.mark.parametrize(("body", "param", "part"), COMPLETION)
def test_a_wrong_field_of_a_completion_is_named(server, body, param, part) -> None:
    error = refusal(server, "/v1/completions", body)
    assert error["param"] == param
    assert part in error["message"]


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b"", "not JSON"),
        (b'{"prompt": "a"', "not JSON"),
        (b'["prompt"]', "no object"),
        (b'{"prompt": "\xff\xfe"}', "not UTF-8 (byte 12)"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN is no JSON number"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", ""),
        (b"\x00" * 100, "not JSON"),
    ],
)
def test_bodies_that_are_no_json(server: Local, raw: bytes, part: str) -> None:
    assert part in refusal(server, "/v1/completions", raw)["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type(server: Local, content_type: str) -> None:
    headers = {"content-type": content_type}
    response = server.client.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


def test_a_compressed_body(server: Local) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = server.client.post("/v1/completions", content=b"\x1f\x8b", headers=headers)
    assert response.status_code == 415
    assert "content-encoding" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/v1/responses", "use /v1/chat/completions"),
        ("/v1/embeddings", "writes text"),
        ("/v1/nothing", "no such path"),
        ("/%ff%fe", "no such path"),
    ],
)
def test_paths_that_are_not_served(server: Local, path: str, part: str) -> None:
    for response in (server.client.get(path), server.client.post(path, json={})):
        assert response.status_code == 404
        assert part in response.json()["error"]["message"]


def test_another_method(server: Local) -> None:
    response = server.client.get("/v1/chat/completions")
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "a"]), inner)
    ),
    max_leaves=12,
)
FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *NOT_DONE})


@settings(
    deadline=None, derandomize=True, max_examples=250, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.sampled_from(["chat/completions", "completions"]), st.data())
def test_no_body_is_the_servers_fault(server: Local, path: str, data: st.DataObject) -> None:
    own = {"messages": [HELLO]} if path.startswith("chat") else {"prompt": [5, 6]}
    changed = data.draw(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2))
    raw = json.dumps({**own, "max_tokens": 2, **changed}).encode()
    headers = {"content-type": "application/json"}
    response = server.client.post(f"/v1/{path}", content=raw, headers=headers)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]


EDGES = [-0.0, 1, 1.0, -2, 21, 129, 1e-7, 0.009, 101, 1e-320, 1e308, -1e308, 2**53 + 1, 2**63 - 1]
EDGES += [2**63, 10**20, -(10**20), 10**400, True, "1", None, [], [10**20]]


def numbers() -> list[str]:
    """Return the fields of both bodies, and those within others, that numbers can stand in."""
    return [*FIELDS, "thinking.budget_tokens", "stop_token_ids[]", "prompt[]", "prompt[][]"]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_no_number_is_the_servers_fault(server: Local, path: str) -> None:
    own = {"messages": [HELLO]} if path.startswith("chat") else {"prompt": [5, 6]}
    headers = {"content-type": "application/json"}
    for name, value in itertools.product(numbers(), EDGES):
        field = name.partition(".")[0].partition("[")[0]
        if "." in name:
            value = {"type": "enabled", "budget_tokens": value}
        for _ in range(name.count("[")):
            value = [value]
        limit = {} if field == "max_completion_tokens" else {"max_tokens": 2}
        raw = json.dumps({**own, **limit, field: value}).encode()
        response = server.client.post(f"/v1/{path}", content=raw, headers=headers)
        assert response.status_code in (200, 400, 404), (name, value, response.text)
        if response.status_code != 200:
            assert response.json()["error"]["message"]
    assert server.client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("top_k", value) for value in (-1, 0, 1, 2**31, MAX_INTEGER)),
        *(("seed", value) for value in (-MAX_INTEGER - 1, -1, MAX_INTEGER)),
        *(("repetition_penalty", value) for value in (0.01, 1, 100)),
        *(("temperature", value) for value in (0, -0.0, 1e-320, 1e-6, 2)),
        *(("top_p", value) for value in (1e-320, 1e-6, 1)),
        *(("min_p", value) for value in (0, 1e-320, 0.999999)),
        *(("presence_penalty", value) for value in (-2, 2)),
        *(("frequency_penalty", value) for value in (-2, 2)),
        ("thinking_token_budget", MAX_INTEGER),
    ],
)
def test_numbers_at_their_bounds_are_served(server: Local, name: str, value: float) -> None:
    answer = server.chat(**{"temperature": 1.5, "max_tokens": 4, "logprobs": True, name: value})
    assert all(math.isfinite(entry["logprob"]) for entry in answer["logprobs"]["content"])


def test_fields_that_change_nothing_are_let_pass(server: Local) -> None:
    more = {"user": "a", "metadata": {"a": "b"}, "store": True, "logit_bias": {}, "audio": None}
    more |= {"response_format": {"type": "text"}, "modalities": ["text"], "stop": None}
    assert server.chat(**more)["message"]["content"] == "It is 5."


def test_limits(toggled) -> None:
    limits = Limits(max_tokens=8, max_n=2, max_choices=3, max_body_mib=0.01)
    with local(toggled, limits=limits) as small:
        chat, completions = "/v1/chat/completions", "/v1/completions"
        assert "at most 8" in refusal(small, chat, asking(max_tokens=9))["message"]
        assert "at most 2" in refusal(small, chat, asking(n=3))["message"]
        four = {"prompt": ["a"] * 4}
        assert refusal(small, completions, four)["param"] == "prompt"
        large = {"prompt": "a" * 20_000}
        assert refusal(small, completions, large, 413)["code"] == "body_too_large"
        huge = {"prompt": "a" * 200_000}  # so much that it is not even read
        assert refusal(small, completions, huge, 413)["code"] == "body_too_large"
        assert small.chat()["finish_reason"] == "length"  # the limit is the default too
        assert small.post(chat, asking())["usage"]["completion_tokens"] == 8


def test_limits_that_let_nothing_through_are_refused() -> None:
    with pytest.raises(ValueError, match="max_n 0 lets no request through"):
        Limits(max_n=0)
    with pytest.raises(ValueError, match="max_tokens 0; give at least 1"):
        Limits(max_tokens=0)
    with pytest.raises(ValueError, match="thinking_budget -1 is negative"):
        Limits(thinking_budget=-1)


def test_keys(toggled) -> None:
    with local(toggled, api_keys=["one", "zwei ü"]) as locked:
        for headers in (
            {},
            {"authorization": "Bearer two"},
            {"authorization": "one"},
            {"authorization": "Basic one"},
            {"authorization": "Bearer "},
        ):
            response = locked.client.get("/v1/models", headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["type"] == "authentication_error"
        for key in ("one", "zwei ü"):
            headers = [(b"authorization", f"Bearer {key}".encode())]
            assert locked.client.get("/v1/models", headers=headers).status_code == 200
        assert locked.client.get("/health").status_code == 200
        for path in ("/metrics", "/tokenizer_info", "/architecture", "/openapi.json"):
            assert locked.client.get(path).status_code == 401
