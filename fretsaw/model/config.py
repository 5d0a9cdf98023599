"""What a network is, as data: one `ModelConfig` with one `BlockConfig` per layer.

Standard library only: the planner, the search and `--help` read architectures without torch. The
field names are those of Hugging Face's Llama; the per-layer shapes are what Llama lacks.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

AttentionKind = Literal["gqa", "linear", "none"]
FfnKind = Literal["swiglu", "linear", "none"]

_ATTENTION_NAME = re.compile(r"gqa(\d+)|attn_linear|attn_none")
_FFN_NAME = re.compile(r"ffn(\d+)|ffn_linear|ffn_none")


@dataclass(frozen=True)
class BlockConfig:
    """The shapes of one transformer block: an attention subblock, then an FFN subblock."""

    attention: AttentionKind = "gqa"
    num_key_value_heads: int = 0  # only with attention="gqa"
    ffn: FfnKind = "swiglu"
    intermediate_size: int = 0  # only with ffn="swiglu"

    def __post_init__(self) -> None:
        if (self.attention == "gqa") != (self.num_key_value_heads > 0):
            raise ValueError(
                f"block: attention {self.attention!r} with {self.num_key_value_heads} key-value "
                "heads; grouped-query attention needs at least one, the other kinds take none"
            )
        if (self.ffn == "swiglu") != (self.intermediate_size > 0):
            raise ValueError(
                f"block: ffn {self.ffn!r} with intermediate_size {self.intermediate_size}; "
                "a SwiGLU needs a positive width, the other kinds take none"
            )

    @classmethod
    def from_names(cls, attention: str, ffn: str) -> "BlockConfig":
        """Build from alternatives' names: `gqa4`, `attn_linear`, `attn_none`; `ffn384`, ..."""
        a, f = _ATTENTION_NAME.fullmatch(attention), _FFN_NAME.fullmatch(ffn)
        if a is None:
            raise ValueError(
                f"{attention!r} names no attention; use gqa<kv>, attn_linear, attn_none"
            )
        if f is None:
            raise ValueError(f"{ffn!r} names no FFN; use ffn<width>, ffn_linear or ffn_none")
        return cls(
            attention="gqa" if a[1] else "linear" if attention == "attn_linear" else "none",
            num_key_value_heads=int(a[1] or 0),
            ffn="swiglu" if f[1] else "linear" if ffn == "ffn_linear" else "none",
            intermediate_size=int(f[1] or 0),
        )

    @property
    def attention_name(self) -> str:
        """The name of the attention alternative, such as `gqa4`."""
        return (
            f"gqa{self.num_key_value_heads}"
            if self.attention == "gqa"
            else f"attn_{self.attention}"
        )

    @property
    def ffn_name(self) -> str:
        """The name of the FFN alternative, such as `ffn384`."""
        return f"ffn{self.intermediate_size}" if self.ffn == "swiglu" else f"ffn_{self.ffn}"


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3 rotary scaling: long wavelengths are stretched by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama-shaped decoder with a `BlockConfig` for every layer."""

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    head_dim: int
    blocks: tuple[BlockConfig, ...]
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("model: no layers; a network needs at least one block")
        if self.head_dim % 2:
            raise ValueError(
                f"model: head_dim {self.head_dim} is odd; rotary embeddings need pairs"
            )
        for i, block in enumerate(self.blocks):
            if block.attention == "gqa" and self.num_attention_heads % block.num_key_value_heads:
                raise ValueError(
                    f"model: layer {i} has {block.num_key_value_heads} key-value heads, which do "
                    f"not divide the {self.num_attention_heads} query heads"
                )

    @classmethod
    def uniform(
        cls, *, num_hidden_layers: int, num_key_value_heads: int, intermediate_size: int, **fields
    ) -> "ModelConfig":
        """Build a plain Llama, every layer the same."""
        block = BlockConfig(
            num_key_value_heads=num_key_value_heads, intermediate_size=intermediate_size
        )
        return cls(blocks=(block,) * num_hidden_layers, **fields)

    @property
    def num_hidden_layers(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    @property
    def is_homogeneous(self) -> bool:
        """Whether every layer is the same attention and SwiGLU, as a plain Llama's are."""
        first = self.blocks[0]
        plain = first.attention == "gqa" and first.ffn == "swiglu"
        return plain and all(block == first for block in self.blocks)


def blocks_from_names(choices: Iterable[tuple[str, str]]) -> tuple[BlockConfig, ...]:
    """Turn the search's `[attention, ffn]` choices into blocks, first layer first."""
    return tuple(BlockConfig.from_names(attention, ffn) for attention, ffn in choices)
