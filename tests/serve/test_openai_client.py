"""The real openai client against the real server."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import LESSONS, Remote, lesson

QUESTION = "What is 2 + 3?"
REASONING, ANSWER = LESSONS[QUESTION]
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def client(live: Remote) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def ask(client: Any, **more):
    fields = {"model": "toggled", "messages": MESSAGES, "temperature": 0, **more}
    return client.chat.completions.create(**fields)


def test_models(client: Any) -> None:
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("toggled").id == "toggled"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("other")


def test_chat(client: Any) -> None:
    found = ask(client)
    message = found.choices[0].message
    assert (message.role, message.content) == ("assistant", ANSWER)
    assert message.reasoning == message.reasoning_content == REASONING
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens_details.reasoning_tokens > 0
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_the_toggle(client: Any) -> None:
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    for more in ({"extra_body": kwargs}, {"reasoning_effort": "none"}):
        message = ask(client, **more).choices[0].message
        assert (message.content, message.reasoning) == (ANSWER, None)


def test_an_answer_can_be_sent_back_as_it_came(client: Any) -> None:
    message = ask(client).choices[0].message
    more = [*MESSAGES, message, {"role": "user", "content": "Name a color."}]
    assert ask(client, messages=more).choices[0].message.content


def test_a_stream(client: Any) -> None:
    stream = ask(client, stream=True, stream_options={"include_usage": True}, n=2)
    texts = {("reasoning", 0): "", ("content", 0): "", ("reasoning", 1): "", ("content", 1): ""}
    usage, roles = None, []
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            roles += [choice.delta.role] if choice.delta.role else []
            reasoning = getattr(choice.delta, "reasoning", None)
            assert reasoning is None or not choice.delta.content
            texts["reasoning", choice.index] += reasoning or ""
            texts["content", choice.index] += choice.delta.content or ""
    assert roles == ["assistant"] * 2
    assert {(k, t) for (k, _), t in texts.items()} == {
        ("reasoning", REASONING),
        ("content", ANSWER),
    }
    assert usage is not None
    assert usage.completion_tokens > 20


def test_the_streaming_helper(client: Any) -> None:
    with client.chat.completions.stream(
        model="toggled", messages=MESSAGES, temperature=0, logprobs=True
    ) as stream:
        for _ in stream:
            pass
        found = stream.get_final_completion()
    assert found.choices[0].message.content == ANSWER
    tokens = found.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == f"{lesson(QUESTION, 'on')}<|eot_id|>"


def test_completions(client: Any) -> None:
    found = client.completions.create(
        model="toggled", prompt=["I am", "Blue"], max_tokens=5, temperature=0, logprobs=2, echo=True
    )
    assert [choice.index for choice in found.choices] == [0, 1]
    assert found.choices[0].text.startswith("I am")
    logprobs = found.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.tokens) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    parts = client.completions.create(
        model="toggled", prompt="I am", max_tokens=5, temperature=0, stream=True
    )
    text = "".join(part.choices[0].text for part in parts)
    assert f"I am{text}" == found.choices[0].text


def test_tools(client: Any) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    choice = ask(client, tools=[tool], tool_choice="auto").choices[0]
    assert choice.message.tool_calls is None
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, tools=[tool], tool_choice="required")
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"n": 1000}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"chat_template": "{{"}}, "chat_template"),
    ],
)
def test_refusals(client: Any, fields: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert param.partition("[")[0] in caught.value.message
    assert ask(client, max_tokens=1).choices


def test_an_unknown_model_and_what_is_out_of_scope(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-9")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError, match="use /v1/chat/completions"):
        client.responses.create(model="toggled", input="Hello!")
    with pytest.raises(openai.NotFoundError, match="writes text"):
        client.embeddings.create(model="toggled", input="Hello!")
