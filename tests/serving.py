"""A tiny model overfitted on the toggle, and servers of it: in the process, and real ones."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from patience import patient
from starlette.testclient import TestClient

from fretsaw.chat.control_tokens import add_control_tokens
from fretsaw.chat.message import Message
from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.reasoning import Mode, with_reasoning
from fretsaw.chat.render import render
from fretsaw.chat.toggle import Toggle
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.engine import Engine
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.serve.api import create_app
from fretsaw.serve.engine_thread import EngineThread
from fretsaw.serve.model import ServedModel
from fretsaw.serve.service import Service
from fretsaw.serve.settings import Limits
from fretsaw.talk.loaded import LoadedModel

# question -> (reasoning, answer); a trace with a blank line, as a stop string would be
LESSONS = {
    "What is 2 + 3?": ("I add three to two.\n\nTwo, three, four, five.", "It is 5."),
    "Name a color.": ("Many colors come to mind.\n\nThe sky is one of them.", "Blue."),
    "Hello!": ("A greeting.\n\nI greet as well.", "Hello, friend! How are you?"),
    "Who are you?": ("I was made small.\n\nI say so.", "I am a tiny model."),
}
CONTEXT = 256
# How it is told to reason: v1's line, v1.5's flags, or not at all (then it answers at once).
TOLD: tuple[tuple[Toggle, Mode], ...] = (
    ("v1", "on"),
    ("v1", "off"),
    ("v1.5", "on"),
    ("v1.5", "off"),
    ("none", "on"),
)


def lesson(question: str, mode: str) -> str:
    """Return the text that the model has learned to write."""
    reasoning, answer = LESSONS[question]
    return with_reasoning(reasoning, answer) if mode == "on" else answer


def write_toggled(folder: Path) -> None:
    """Write a checkpoint that answers the lessons by heart, with reasoning on and off."""
    texts = [lesson(question, "on") for question in LESSONS] + list(LESSONS)
    tokenizer = Tokenizer.train(texts, 320)
    add_control_tokens(tokenizer)
    config = ModelConfig.uniform(
        num_hidden_layers=2,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_attention_heads=4,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tokenizer.eos_token_ids,
    )
    decoder = Decoder(config)
    decoder.init_weights(seed=0)
    learn(decoder, tokenizer)
    checkpoint.write(decoder, folder, tokenizer=tokenizer)


def learn(decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Train until every target is the most probable token by far."""
    ids, labels = rows(tokenizer)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=4e-3, weight_decay=0.0)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 20)
        logits = decoder(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-1)
        if loss.item() < 0.01:
            return
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
    raise AssertionError(f"the lessons were not learned: loss {loss.item():.4f}")


def rows(tokenizer: Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return padded ids, and as labels those of the answers, -1 elsewhere."""
    questions = list(LESSONS)
    spans = []
    for number, question in enumerate(questions):
        before = questions[(number + 1) % len(questions)]
        for toggle, mode in TOLD:
            written = mode if toggle != "none" else "off"
            asked = [Message("user", question), Message("assistant", lesson(question, written))]
            earlier = [Message("user", before), Message("assistant", lesson(before, written))]
            own = Message("system", "Be brief.")
            spans.append(render(tokenizer, asked, mode, toggle=toggle))
            if toggle == "v1":
                spans.append(render(tokenizer, [*earlier, *asked], mode))
                spans.append(render(tokenizer, [own, *asked], mode))
    lengths = [sum(len(span.token_ids) for span in row) for row in spans]
    ids = torch.zeros(len(spans), max(lengths), dtype=torch.long)
    labels = torch.full_like(ids, -1)
    for number, row in enumerate(spans):
        at = 0
        for span in row:
            end = at + len(span.token_ids)
            ids[number, at:end] = torch.tensor(span.token_ids)
            if span.is_target:
                labels[number, at:end] = ids[number, at:end]
            at = end
    return ids, labels


@dataclass
class Local:
    """A server in this process, and its parts."""

    client: TestClient
    service: Service
    engine: Engine

    def post(self, path: str, body: dict) -> dict:
        """Return the JSON of a request that must succeed."""
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def chat(self, question: str = "What is 2 + 3?", /, **body: Any) -> dict:
        """Return the first choice of a greedy answer."""
        return self.post("/v1/chat/completions", asking(question, **body))["choices"][0]


def asking(question: str = "What is 2 + 3?", **body) -> dict:
    """Return the body of a greedy chat completion."""
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, **body}


@contextmanager
def local(
    folder: Path,
    *,
    limits: Limits | None = None,
    max_batch: int = 8,
    api_keys=(),
    allow_origins=(),
    toggle: Toggle = "v1",
    **model,
) -> Iterator[Local]:
    """Serve a checkpoint in this process."""
    loaded = LoadedModel.from_checkpoint(folder)
    engine = Engine(loaded.decoder, max_batch=max_batch)
    served = ServedModel.of(folder, CONTEXT)
    model = {"format": NemotronFormat(served.tokenizer, toggle), **model}
    for name, value in model.items():
        object.__setattr__(served, name, value)
    limits = limits or Limits()
    service = Service(served, EngineThread(engine, max_open=max_batch + limits.max_queue), limits)
    app = create_app(service, api_keys=api_keys, allow_origins=allow_origins)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Local(client, service, engine)


@dataclass
class Remote:
    """A real server in a process of its own."""

    url: str
    greeting: str
    process: subprocess.Popen[str]


@contextmanager
def remote(folder: Path, *options: str) -> Iterator[Remote]:
    """Start `fretsaw serve` on a free port, and end it as a supervisor would."""
    command = [sys.executable, "-m", "fretsaw", "serve", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        greeting = process.stdout.readline()
        found = re.search(r"http://\S+", greeting)
        assert found, f"no address in {greeting!r}"
        yield Remote(found[0], greeting, process)
    finally:
        process.terminate()
        process.wait(timeout=patient(30))
        process.stdout.close()
