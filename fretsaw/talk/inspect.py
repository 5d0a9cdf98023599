"""What a checkpoint is made of, from its config alone."""

from fretsaw.model.config import ModelConfig
from fretsaw.model.size import block_params, kv_bytes, num_params


def render_config(config: ModelConfig) -> str:
    """Return a table of the layers with their parameters, equal neighbours in one row."""
    lines = [
        f"{num_params(config):,} parameters, {config.num_hidden_layers} layers, hidden "
        f"{config.hidden_size}, {config.num_attention_heads} heads of {config.head_dim}, "
        f"vocabulary {config.vocab_size}{' (tied)' if config.tie_word_embeddings else ''}, context "
        f"{config.max_position_embeddings}, {kv_bytes(config):,} bytes of cache a token in bf16",
        f"{'layers':>9}  {'attention':<12}{'ffn':<12}{'parameters':>14}",
    ]
    first = 0
    for i in range(1, config.num_hidden_layers + 1):
        if i == config.num_hidden_layers or config.blocks[i] != config.blocks[first]:
            block = config.blocks[first]
            span = f"{first}" if i - first == 1 else f"{first}-{i - 1}"
            params = int(block_params(config, block).total)
            lines.append(f"{span:>9}  {block.attention_name:<12}{block.ffn_name:<12}{params:>14,}")
            first = i
    return "\n".join(lines)
