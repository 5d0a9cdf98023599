"""LoRA: nothing changes at the start, merged equals unmerged, only the factors are trained."""

import pytest
import torch

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.training.lora import adapt, merge
from fretsaw.training.settings import LoraSettings


def decoder() -> Decoder:
    config = ModelConfig(
        vocab_size=50,
        hidden_size=32,
        num_attention_heads=4,
        head_dim=8,
        blocks=(
            BlockConfig(num_key_value_heads=2, intermediate_size=48),
            BlockConfig(attention="linear", ffn="none"),
        ),
    )
    model = Decoder(config)
    model.init_weights(0)
    return model


def test_merged_is_unmerged() -> None:
    model, ids = decoder(), torch.arange(20)[None]
    names = list(model.state_dict())
    before = model(ids)
    factors = adapt(model, LoraSettings(lora_rank=3, lora_alpha=6), seed=1)
    assert torch.equal(model(ids), before)  # `up` starts at 0
    generator = torch.Generator().manual_seed(2)
    for parameter in factors.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    unmerged = model(ids)
    assert not torch.allclose(unmerged, before, atol=1e-3)
    merge(model)
    torch.testing.assert_close(model(ids), unmerged, rtol=1e-4, atol=1e-6)
    assert list(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_only_the_named_matrices_get_factors() -> None:
    model = decoder()
    factors = adapt(model, LoraSettings(lora_rank=2, lora_matrices=("q_proj", "down_proj")), 0)
    assert sorted(factors) == ["0/mlp/down_proj", "0/self_attn/q_proj"]
    # q: 32 -> 32, down: 48 -> 32
    assert sum(p.numel() for p in factors.parameters()) == 2 * (32 + 32) + 2 * (48 + 32)
    model(torch.arange(5)[None]).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(".factors." in name for name in trained)
    assert len(trained) == 4


def test_what_is_no_matrix_is_named() -> None:
    with pytest.raises(ValueError, match=r"'qq_proj' is no matrix.*down_proj"):
        adapt(decoder(), LoraSettings(lora_rank=2, lora_matrices=("qq_proj",)), 0)
    with pytest.raises(ValueError, match="nothing would be trained"):
        LoraSettings(lora_rank=2, lora_matrices=())
