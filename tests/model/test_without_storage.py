"""Modules that are made of shapes alone."""

import pytest
import torch
from torch import nn

from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.model.decoder import Decoder
from fretsaw.model.kinds import Precision
from fretsaw.model.linear import QuantisedLinear
from fretsaw.model.without_storage import without_storage

BLOCKS = blocks_from_names(
    [("gqa2", "ffn48"), ("attn_linear", "ffn_linear"), ("attn_none", "ffn8")]
)


@pytest.mark.parametrize("precision", ["full", "int8", "fp8"])
def test_a_network_has_the_shapes_it_would_have(precision: Precision) -> None:
    blocks = tuple(block.stored(precision, precision) for block in BLOCKS)
    config = ModelConfig(
        blocks=blocks, vocab_size=64, hidden_size=32, num_attention_heads=4, head_dim=8
    )
    with without_storage():
        made = Decoder(config)
    whole = Decoder(config)
    told = {name: (w.shape, w.dtype) for name, w in made.state_dict().items()}
    assert told == {name: (w.shape, w.dtype) for name, w in whole.state_dict().items()}
    assert all(w.is_meta for w in made.state_dict().values())
    made.load_state_dict(whole.state_dict(), assign=True)
    ids = torch.arange(10)[None]
    assert torch.equal(made(ids), whole(ids))


def test_afterwards_modules_are_filled_as_ever() -> None:
    torch.manual_seed(0)
    before = nn.Linear(4, 3)
    with without_storage():
        made = nn.Linear(4, 3)
        assert isinstance(QuantisedLinear(4, 3, "int8"), nn.Linear)
    torch.manual_seed(0)
    after = nn.Linear(4, 3)
    assert made.weight.is_meta
    assert torch.equal(before.weight, after.weight)
