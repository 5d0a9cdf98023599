"""What a network is, as data: one `ModelConfig` with one `BlockConfig` per layer.

Standard library only: the planner, the search and `--help` read architectures without torch. The
field names are those of Hugging Face's Llama; the per-layer shapes are what Llama lacks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fretsaw.model.kinds import KINDS, Precision, SubblockKind, parse_alternative


@dataclass(frozen=True)
class BlockConfig:
    """The shapes of one transformer block: an attention subblock, then an FFN subblock."""

    attention: str = "gqa"  # a kind of `kinds.py`
    num_key_value_heads: int = 0  # of a kind with a size
    ffn: str = "swiglu"
    intermediate_size: int = 0  # of a kind with a size
    attention_precision: Precision = "full"
    ffn_precision: Precision = "full"

    def __post_init__(self) -> None:
        if self.attention_kind.has_size != (self.num_key_value_heads > 0):
            raise ValueError(
                f"block: attention {self.attention!r} with {self.num_key_value_heads} key-value "
                "heads; grouped-query attention needs at least one, the other kinds take none"
            )
        if self.ffn_kind.has_size != (self.intermediate_size > 0):
            raise ValueError(
                f"block: ffn {self.ffn!r} with intermediate_size {self.intermediate_size}; "
                "a SwiGLU needs a positive width, the other kinds take none"
            )
        for kind, precision in (
            (self.attention, self.attention_precision),
            (self.ffn, self.ffn_precision),
        ):
            if kind == "none" and precision != "full":
                raise ValueError(f"block: nothing in {precision}; what is absent has no precision")

    @classmethod
    def from_names(cls, attention: str, ffn: str) -> "BlockConfig":
        """Build from alternatives' names: `gqa4`, `attn_linear`, `attn_none`; `ffn384@fp8`, ..."""
        kind, kv_heads, precision = parse_alternative("attention", attention)
        ffn_kind, width, ffn_precision = parse_alternative("ffn", ffn)
        return cls(kind.name, kv_heads, ffn_kind.name, width, precision, ffn_precision)

    @property
    def kinds(self) -> tuple[SubblockKind, SubblockKind]:
        """Its kinds of attention and of FFN."""
        return self.attention_kind, self.ffn_kind

    @property
    def attention_kind(self) -> SubblockKind:
        """What is known of its kind of attention. Raises KeyError for an unknown one."""
        return KINDS["attention", self.attention]

    @property
    def ffn_kind(self) -> SubblockKind:
        """What is known of its kind of FFN. Raises KeyError for an unknown one."""
        return KINDS["ffn", self.ffn]

    def stored(self, attention: Precision, ffn: Precision) -> "BlockConfig":
        """Return the block with its subblocks' matrices in these precisions, as far as they are."""
        return replace(
            self,
            attention_precision="full" if self.attention == "none" else attention,
            ffn_precision="full" if self.ffn == "none" else ffn,
        )

    @property
    def attention_name(self) -> str:
        """The name of the attention alternative, such as `gqa4`, or `gqa4@fp8` in 8 bits."""
        name = self.attention_kind.alternative(self.num_key_value_heads)
        return in_precision(name, self.attention_precision)

    @property
    def ffn_name(self) -> str:
        """The name of the FFN alternative, such as `ffn384`, or `ffn384@int8` in 8 bits."""
        name = self.ffn_kind.alternative(self.intermediate_size)
        return in_precision(name, self.ffn_precision)


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
    pad_token_id: int | None = None

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

    @property
    def is_quantised(self) -> bool:
        """Whether any matrix is in 8 bits."""
        return any(
            (b.attention_precision, b.ffn_precision) != ("full", "full") for b in self.blocks
        )

    @property
    def in_full(self) -> "ModelConfig":
        """The same network with every matrix in full precision."""
        return replace(self, blocks=tuple(block.stored("full", "full") for block in self.blocks))


def in_precision(name: str, precision: Precision) -> str:
    """Return an alternative's name with its precision, where that is not full."""
    return name if precision == "full" else f"{name}@{precision}"


def without_precision(name: str) -> str:
    """Return an alternative's name as it is in full precision."""
    return name.partition("@")[0]


def blocks_from_names(choices: Iterable[tuple[str, str]]) -> tuple[BlockConfig, ...]:
    """Turn the search's `[attention, ffn]` choices into blocks, first layer first."""
    return tuple(BlockConfig.from_names(attention, ffn) for attention, ffn in choices)
