"""Loss and gradient of a step against transformers: its template, mask, padding and loss."""

import json
import shutil
from pathlib import Path

import foreign
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fretsaw.chat.format import require_chat_format
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data.pack import pack
from fretsaw.data.records import read_records
from fretsaw.sft.examples import encode, micro_batches
from fretsaw.sft.train import add_gradient

ROW_LEN = 96
CONVERSATIONS = [
    ["1 + 1?", "2"],
    ["How many apples?", "Three apples.", "And pears?", "None at all, I am afraid."],
    ["Say it.", "It is said, once, and then again."],
    ["a", "b", "c", "d", "e", "f"],
]


@pytest.fixture(scope="module")
def hermes(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template that marks its answers with `{% generation %}`."""
    folder = tmp_path_factory.mktemp("hermes") / "model"
    shutil.copytree(tiny / "parent", folder)
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    model = checkpoint.load(folder).with_vocab(tokenizer.vocab_size, (tokenizer.vocab_size - 1,))
    checkpoint.write(model, folder, tokenizer=tokenizer)
    (folder / "chat_template.jinja").write_text(foreign.HERMES)
    return folder


def test_a_step_is_that_of_transformers(hermes: Path, tmp_path: Path) -> None:
    """In double precision, packed in micro-batches against padded in one."""
    turns = [
        [
            {"role": "assistant" if i % 2 else "user", "content": text}
            for i, text in enumerate(texts)
        ]
        for texts in CONVERSATIONS
    ]
    data = tmp_path / "a.jsonl"
    data.write_text("\n".join(json.dumps({"messages": one, "mode": "off"}) for one in turns))
    format = require_chat_format(hermes, Tokenizer.from_folder(hermes))
    examples, _ = encode(read_records([str(data)]), format, ROW_LEN, "refuse")

    peer = AutoTokenizer.from_pretrained(hermes)
    rendered = [
        peer.apply_chat_template(one, return_dict=True, return_assistant_tokens_mask=True)
        for one in turns
    ]
    longest = max(len(one["input_ids"]) for one in rendered)
    ids = torch.zeros(len(turns), longest, dtype=torch.long)
    labels, attention = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, one in enumerate(rendered):
        size, mask = len(one["input_ids"]), torch.tensor(one["assistant_masks"]).bool()
        ids[row, :size] = torch.tensor(one["input_ids"])
        labels[row, :size] = torch.where(mask, ids[row, :size], -100)
        attention[row, :size] = 1
    theirs = AutoModelForCausalLM.from_pretrained(hermes, dtype=torch.float64)
    loss = theirs(ids, attention_mask=attention, labels=labels).loss
    loss.backward()

    ours = checkpoint.load(hermes).double()
    rows = pack([len(example.token_ids) for example in examples], ROW_LEN)
    metrics = add_gradient(ours, micro_batches(examples, rows, ROW_LEN, 1), "fp32")
    assert metrics["targets"] == (labels[:, 1:] != -100).sum()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = gradients[name].grad
        assert parameter.grad is not None
        assert expected is not None
        assert (parameter.grad - expected).norm() <= 1e-6 * expected.norm(), name
