"""Networks whose layers differ in every way there is, with random weights."""

from dataclasses import replace

import torch

from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.model.decoder import Decoder

FULL = ("gqa4", "ffn256")
BASE = ModelConfig.uniform(
    num_hidden_layers=3,
    num_key_value_heads=4,
    intermediate_size=256,
    vocab_size=96,
    hidden_size=128,
    num_attention_heads=8,
    head_dim=16,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_ids=(2,),
)


def _with(layer: int, choice: tuple[str, str]) -> list[tuple[str, str]]:
    return [choice if i == layer else FULL for i in range(3)]


PATTERNS: dict[str, list[tuple[str, str]]] = {
    "uniform": [FULL] * 3,
    "variable_kv": [("gqa1", "ffn256"), ("gqa8", "ffn256"), ("gqa2", "ffn256")],
    "variable_widths": [("gqa4", "ffn512"), ("gqa4", "ffn256"), ("gqa4", "ffn768")],
    "any_widths": [("gqa4", "ffn100"), ("gqa4", "ffn44"), ("gqa4", "ffn300")],
    **{
        f"{kind}_{place}": _with(layer, choice)
        for kind, choice in {
            "attn_none": ("attn_none", "ffn256"),
            "attn_linear": ("attn_linear", "ffn256"),
            "ffn_none": ("gqa4", "ffn_none"),
            "ffn_linear": ("gqa4", "ffn_linear"),
        }.items()
        for layer, place in enumerate(("first", "middle", "last"))
    },
    "both_none_first": _with(0, ("attn_none", "ffn_none")),
    "both_none": _with(1, ("attn_none", "ffn_none")),
    "both_none_last": _with(2, ("attn_none", "ffn_none")),
    "fused": [FULL, ("attn_none", "ffn_none"), ("attn_none", "ffn1536"), FULL],
    "no_ops": [
        ("attn_none", "ffn512"),
        ("gqa1", "ffn_none"),
        ("gqa2", "ffn_none"),
        ("attn_none", "ffn100"),
        ("attn_none", "ffn_none"),
        ("attn_none", "ffn256"),
        ("gqa8", "ffn_none"),
    ],
    "mix": [
        ("attn_none", "ffn512"),
        ("gqa1", "ffn_linear"),
        ("attn_linear", "ffn_none"),
        ("gqa8", "ffn256"),
        ("attn_none", "ffn_none"),
        ("gqa2", "ffn_none"),
    ],
}
LINEAR = [name for name, layers in PATTERNS.items() if "linear" in str(layers)]
MIX = PATTERNS["mix"]


def make(choices: list[tuple[str, str]], **changes) -> Decoder:
    """A random decoder, its norms included."""
    decoder = Decoder(replace(BASE, blocks=blocks_from_names(choices), **changes))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            mean, std = (1.0, 0.2) if name.endswith("norm.weight") else (0.0, 0.08)
            weight.normal_(mean, std, generator=generator)
    return decoder


def ids_of(batch: int, seq: int) -> torch.Tensor:
    return torch.randint(3, 96, (batch, seq), generator=torch.Generator().manual_seed(6))
