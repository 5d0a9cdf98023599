"""The decoder gives Llama's logits, and the same ones packed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fretsaw.checkpoint import folder, llama
from fretsaw.model.config import BlockConfig, ModelConfig, RopeScaling
from fretsaw.model.decoder import Decoder

TOLERANCE = 1e-4
LLAMA3_ROPE = RopeScaling(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def small_config(**changes) -> ModelConfig:
    fields = {
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 64,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    return ModelConfig.uniform(**{**fields, **changes})


def random_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    """A decoder whose weights are large enough, norms included, for a mistake to show."""
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            mean, std = (1.0, 0.2) if name.endswith("norm.weight") else (0.0, 0.15)
            weight.normal_(mean, std, generator=generator)
    return decoder.eval()


def random_ids(config: ModelConfig, *shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, shape, generator=generator)


def heterogeneous_config() -> ModelConfig:
    blocks = (
        BlockConfig("none", 0, "swiglu", 40),
        BlockConfig("gqa", 1, "linear", 0),
        BlockConfig("linear", 0, "none", 0),
        BlockConfig("gqa", 8, "none", 0),
        BlockConfig("none", 0, "none", 0),
        BlockConfig("gqa", 2, "swiglu", 24),
    )
    return replace(small_config(), blocks=blocks)


@torch.no_grad()
def test_logits_of_shared_checkpoints_are_transformers(model_folder: Path) -> None:
    ours = folder.load(model_folder)
    theirs = LlamaForCausalLM.from_pretrained(model_folder)
    ids = random_ids(ours.config, 3, 60)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaling", [None, LLAMA3_ROPE], ids=["rope", "rope_llama3"])
@torch.no_grad()
def test_logits_of_random_models_are_transformers(
    num_key_value_heads: int, tied: bool, scaling: RopeScaling | None
) -> None:
    config = small_config(
        num_key_value_heads=num_key_value_heads,
        tie_word_embeddings=tied,
        rope_scaling=scaling,
        rope_theta=5000.0,
    )
    ours = random_decoder(config)
    theirs = LlamaForCausalLM(LlamaConfig(**llama.config_to_json(config, dtype="fp32")))
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if tied else [])
    theirs.tie_weights()
    ids = random_ids(config, 2, 100)
    torch.testing.assert_close(ours(ids), theirs.eval()(ids).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("config", [small_config(), heterogeneous_config()], ids=["llama", "mix"])
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(config: ModelConfig) -> None:
    decoder = random_decoder(config)
    ids = random_ids(config, 2, 12)
    packed = decoder(ids, cu_seqlens=torch.tensor([0, 5, 12, 15, 24]))
    for row, start, end in [(0, 0, 5), (0, 5, 12), (1, 0, 3), (1, 3, 12)]:
        alone = decoder(ids[row : row + 1, start:end])
        torch.testing.assert_close(packed[row, start:end], alone[0], atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter() -> None:
    decoder = random_decoder(heterogeneous_config())
    decoder(random_ids(decoder.config, 2, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first, second, other = (Decoder(small_config()) for _ in range(3))
    first.init_weights(3)
    second.init_weights(3)
    other.init_weights(4)
    same = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
