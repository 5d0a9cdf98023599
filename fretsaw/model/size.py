"""Closed-form size of a network: parameters, FLOPs and key-value bytes, from the config alone.

Standard library only. A multiply-add counts as two FLOPs; norms, rotations, softmax and residual
additions are left out, as is usual. Tied embeddings are counted once.
"""

from dataclasses import dataclass

from fretsaw.model.config import BlockConfig, ModelConfig, Precision

BYTES_PER_ELEMENT = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
SCALE_BYTES = 4  # of a row in 8 bits


@dataclass(frozen=True)
class Subblocks:
    """One figure for the two halves of a block."""

    attention: float
    ffn: float

    @property
    def total(self) -> float:
        """Both halves together."""
        return self.attention + self.ffn


def block_params(config: ModelConfig, block: BlockConfig) -> Subblocks:
    """Parameters of one block, each half with its norm."""
    h, q = config.hidden_size, config.num_attention_heads * config.head_dim
    kv = block.num_key_value_heads * config.head_dim
    attention = {"gqa": h + 2 * h * q + 2 * h * kv, "linear": h + h * h, "none": 0}
    ffn = {"swiglu": h + 3 * h * block.intermediate_size, "linear": h + h * h, "none": 0}
    return Subblocks(attention[block.attention], ffn[block.ffn])


def block_bytes(config: ModelConfig, block: BlockConfig, dtype: str = "bf16") -> Subblocks:
    """Bytes of one block's weights: norms in `dtype`, and matrices too where not in 8 bits.

    A row in 8 bits has a scale in float32.
    """
    params, h = block_params(config, block), config.hidden_size
    q, kv = config.num_attention_heads * config.head_dim, block.num_key_value_heads
    rows = Subblocks(
        {"gqa": q + 2 * kv * config.head_dim + h, "linear": h, "none": 0}[block.attention],
        {"swiglu": 2 * block.intermediate_size + h, "linear": h, "none": 0}[block.ffn],
    )
    width = BYTES_PER_ELEMENT[dtype]

    def stored(params: float, rows: float, precision: Precision) -> float:
        if precision == "full":
            return params * width
        return h * width + (params - h) * BYTES_PER_ELEMENT[precision] + rows * SCALE_BYTES

    return Subblocks(
        stored(params.attention, rows.attention, block.attention_precision),
        stored(params.ffn, rows.ffn, block.ffn_precision),
    )


def embedding_params(config: ModelConfig) -> int:
    """Parameters outside the blocks: embeddings, head (once if tied) and the final norm."""
    tables = 1 if config.tie_word_embeddings else 2
    return tables * config.vocab_size * config.hidden_size + config.hidden_size


def num_params(config: ModelConfig) -> int:
    """All parameters of the network."""
    blocks = sum(block_params(config, block).total for block in config.blocks)
    return int(blocks) + embedding_params(config)


def block_matmul_flops(config: ModelConfig, block: BlockConfig) -> Subblocks:
    """FLOPs of one block's weight matrices for one token, attention scores left out."""
    params = block_params(config, block)
    h = config.hidden_size
    attention = 2 * (params.attention - h) if block.attention != "none" else 0
    ffn = 2 * (params.ffn - h) if block.ffn != "none" else 0
    return Subblocks(attention, ffn)


def block_flops(config: ModelConfig, block: BlockConfig, *, context: float) -> Subblocks:
    """FLOPs of one block for one token that attends to `context` tokens (causal prefill: half)."""
    matmul = block_matmul_flops(config, block)
    scores = 0.0
    if block.attention == "gqa":
        scores = 4 * context * config.num_attention_heads * config.head_dim
    return Subblocks(matmul.attention + scores, matmul.ffn)


def head_flops(config: ModelConfig) -> int:
    """FLOPs of the output head for one token."""
    return 2 * config.vocab_size * config.hidden_size


def forward_flops(config: ModelConfig, *, context: float) -> float:
    """FLOPs of one token through the whole network, head included."""
    blocks = sum(block_flops(config, block, context=context).total for block in config.blocks)
    return blocks + head_flops(config)


def block_kv_bytes(config: ModelConfig, block: BlockConfig, dtype: str = "bf16") -> int:
    """Bytes of keys and values one block keeps for one token."""
    return 2 * block.num_key_value_heads * config.head_dim * BYTES_PER_ELEMENT[dtype]


def kv_bytes(config: ModelConfig, dtype: str = "bf16") -> int:
    """Bytes of keys and values the network keeps for one token."""
    return sum(block_kv_bytes(config, block, dtype) for block in config.blocks)
