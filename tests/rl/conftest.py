"""A small chat model, problems it is right on now and then, and a whole run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rl.toy import SETTINGS
from support import stage_run

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import BlockConfig
from fretsaw.model.decoder import Decoder
from fretsaw.rl.train import reinforce
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.train import tune
from fretsaw.tasks.word_problems import make_problems
from fretsaw.training.settings import UpdateSettings

BLOCKS = [("gqa4", "ffn64"), ("attn_none", "ffn32"), ("gqa2", "ffn_none"), ("gqa1", "ffn48")]


@pytest.fixture(scope="session")
def chat_model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A heterogeneous child that has learnt a little of the chat format."""
    root = tmp_path_factory.mktemp("chat")
    config = checkpoint.read_config(tiny / "parent")
    blocks = tuple(BlockConfig.from_names(*names) for names in BLOCKS)
    decoder = Decoder(replace(config, blocks=blocks))
    decoder.init_weights(0)
    checkpoint.save(decoder, root / "child", like=tiny / "parent")
    settings = SftSettings(
        source="world",
        num_rows=400,
        max_steps=1,
        max_value=17,
        seq_len=256,
        batch_tokens=1024,
        micro_batch_tokens=1024,
        epochs=2,
        update=UpdateSettings(optimizer="muon", learning_rate=1e-2, muon_learning_rate=0.05),
    )
    tune(settings, {"model": root / "child"}, stage_run(root / "sft"))
    return root / "sft"


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of the kind that the model was tuned on, so that it is right now and then."""
    path = tmp_path_factory.mktemp("problems") / "mine.jsonl"
    made = make_problems(20, 0, steps=(1,), max_value=17, split="train")
    rows = [{"prompt": p.messages[0].content, "answer": p.answer} for p in made]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="session")
def finished(
    chat_model: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    """A whole run whose tables other tests read."""
    out = tmp_path_factory.mktemp("rl")
    inputs = {"model": chat_model, "problems": problems}
    return out, reinforce(SETTINGS, inputs, stage_run(out))
