"""Closed-form size of a network: parameters, FLOPs and key-value bytes, from the config alone.

Standard library only. A multiply-add counts as two FLOPs; norms, rotations, softmax and residual
additions are left out, as is usual. Tied embeddings are counted once.
"""

from dataclasses import dataclass

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.kinds import MatrixShapes, Precision

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


def block_matrices(config: ModelConfig, block: BlockConfig) -> tuple[MatrixShapes, MatrixShapes]:
    """Return (rows, columns) of the matrices of a block's attention and of its FFN, by name."""
    attention = block.attention_kind.matrices(config, block.num_key_value_heads)
    return attention, block.ffn_kind.matrices(config, block.intermediate_size)


def _half_params(config: ModelConfig, matrices: MatrixShapes) -> int:
    """Parameters of one half with its norm; nothing has none."""
    weights = sum(rows * columns for rows, columns in matrices.values())
    return weights + config.hidden_size if matrices else 0


def block_params(config: ModelConfig, block: BlockConfig) -> Subblocks:
    """Parameters of one block, each half with its norm."""
    return Subblocks(*(_half_params(config, half) for half in block_matrices(config, block)))


def block_bytes(config: ModelConfig, block: BlockConfig, dtype: str = "bf16") -> Subblocks:
    """Bytes of one block's weights: norms in `dtype`, and matrices too where not in 8 bits.

    A row in 8 bits has a scale in float32.
    """
    width, h = BYTES_PER_ELEMENT[dtype], config.hidden_size

    def stored(matrices: MatrixShapes, precision: Precision) -> float:
        params = _half_params(config, matrices)
        if precision == "full":
            return params * width
        rows = sum(rows for rows, _ in matrices.values())
        return h * width + (params - h) * BYTES_PER_ELEMENT[precision] + rows * SCALE_BYTES

    attention, ffn = block_matrices(config, block)
    return Subblocks(stored(attention, block.attention_precision), stored(ffn, block.ffn_precision))


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
    halves = block_matrices(config, block)
    return Subblocks(*(2 * sum(r * c for r, c in half.values()) for half in halves))


def block_flops(config: ModelConfig, block: BlockConfig, *, context: float) -> Subblocks:
    """FLOPs of one block for one token that attends to `context` tokens (causal prefill: half)."""
    matmul = block_matmul_flops(config, block)
    scores = 0.0
    if block.attention_kind.has_cache:
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
    kv_heads = block.num_key_value_heads if block.attention_kind.has_cache else 0
    return 2 * kv_heads * config.head_dim * BYTES_PER_ELEMENT[dtype]


def kv_bytes(config: ModelConfig, dtype: str = "bf16") -> int:
    """Bytes of keys and values the network keeps for one token."""
    return sum(block_kv_bytes(config, block, dtype) for block in config.blocks)


def gradient_bytes(config: ModelConfig, tokens: float, draws: int) -> float:
    """Return the bytes of the gradients after every subblock, in bf16, of so many draws a token."""
    return 2.0 * 2 * config.num_hidden_layers * draws * tokens * config.hidden_size
