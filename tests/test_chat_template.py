"""The exported template: the ids of our renderer over random conversations, and its rules."""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from fretsaw.chat import (
    TOGGLES,
    Message,
    Mode,
    Toggle,
    ToolCall,
    add_control_tokens,
    prompt_ids,
    render,
    with_reasoning,
)
from fretsaw.chat_template import write_chat_template
from fretsaw.data import world
from fretsaw.tokenizer import Tokenizer

NUM_CONVERSATIONS = 2000  # of each tokenizer and toggle

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "wetter",
            "description": "Wie es ist: <b>\"warm\"</b> & 'kühl'",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    },
    {"name": "add", "parameters": {"b": 1, "a": [1.5, None, True]}},
)
SNIPPETS = (
    *(
        "",
        " ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "\x85",
        "\xa0",
        "\u2028",
        "  a",
        "it's",
        "12345",
        "1+1?",
    ),
    *(
        "Hello, world",
        "naïve café",
        "東京",
        "🙂👩‍👩‍👧",
        "…",
        "}}",
        "{{ x }}",
        "{% if %}",
        "\\n",
        "'",
        '"',
    ),
    *(
        "<think>",
        "</think>",
        "<think>\n",
        "\n</think>\n\n",
        "<TOOLCALL>[",
        "]</TOOLCALL>",
        "</ think>",
    ),
    *("/think", "/no_think", "detailed thinking on", "Detailed Thinking OFF", "detailed thinking "),
    *("onward", "off.", "K", "ſ", "İ", "éa", "\ufeff", "\u200b", "e\u0301", "<|", "|>", "<s"),
)


@pytest.fixture(scope="module", params=["tiny", "llama3", "stories260K"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat tokenizer: ours, Llama 3's, and one of a SentencePiece model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "tiny":
        tokenizer = Tokenizer.train(world.documents(0, "train", 300), 400)
    else:
        room = "tokenizers" if request.param == "llama3" else "models"
        source = request.getfixturevalue("data_folder") / room / request.param
        if not source.is_dir():
            pytest.skip(f"no {source}")
        tokenizer = Tokenizer.from_folder(source)
    add_control_tokens(tokenizer)
    tokenizer.save(folder)
    return folder


def conversation(rng: random.Random) -> list[Message]:
    """Return a conversation with its roles in order; it ends with any of them."""

    def text(most: int = 4) -> str:
        pieces = (
            rng.choice(SNIPPETS) if rng.random() < 0.8 else chr(rng.randrange(1, 0x3000))
            for _ in range(rng.randrange(most + 1))
        )
        return "".join(pieces)

    messages = [Message("system", text())] if rng.random() < 0.6 else []
    for _ in range(rng.randrange(1, 4)):
        messages.append(Message("user", text()))
        while True:
            traced = rng.random()
            content = with_reasoning(text(), text()) if traced < 0.3 else text()
            reasoning = text() if 0.3 < traced < 0.6 else None
            calls = tuple(
                ToolCall(text(2), {text(2): rng.choice([1, 0.5, None, text(), [text()]])})
                for _ in range(rng.choice([0, 0, 0, 1, 2]))
            )
            messages.append(Message("assistant", content, reasoning, calls))
            if not calls:
                break
            messages += [Message("tool", text()) for _ in range(rng.randrange(1, 4))]
    return messages[: rng.randrange(2 if messages[0].role == "system" else 1, len(messages) + 1)]


def as_json(message: Message, rng: random.Random) -> dict:
    """Return a message as OpenAI's clients send it."""
    content: str | None = message.content
    if not content and rng.random() < 0.5:
        content = None
    sent: dict = {"role": message.role, "content": content}
    if message.reasoning is not None:
        sent[rng.choice(["reasoning", "reasoning_content"])] = message.reasoning
    if message.tool_calls:
        sent["tool_calls"] = [
            {
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments
                    if rng.random() < 0.5
                    else json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for call in message.tool_calls
        ]
    return sent


@pytest.mark.parametrize("toggle", TOGGLES)
def test_the_template_gives_the_ids_of_the_renderer(folder: Path, toggle: Toggle) -> None:
    write_chat_template(folder, toggle)
    ours = Tokenizer.from_folder(folder)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    rng = random.Random(toggle)
    num_prompts = 0
    for _ in range(NUM_CONVERSATIONS):
        messages = conversation(rng)
        mode: Mode = rng.choice(("on", "off"))
        told: dict[str, Any] = (
            {} if mode == "on" and rng.random() < 0.5 else {"enable_thinking": mode == "on"}
        )
        tools = TOOLS[: rng.choice([0, 0, 1, 2])]
        sent = [as_json(message, rng) for message in messages]
        template = partial(theirs.apply_chat_template, sent, tools=list(tools) or None, **told)
        spans = render(ours, messages, mode, toggle=toggle, tools=tools)
        assert [id for span in spans for id in span.token_ids] == template()["input_ids"], messages
        if messages[-1].role in ("user", "tool"):
            num_prompts += 1
            prompt = prompt_ids(ours, messages, mode, toggle=toggle, tools=tools)
            assert list(prompt) == template(add_generation_prompt=True)["input_ids"], messages
    assert num_prompts > NUM_CONVERSATIONS / 5
