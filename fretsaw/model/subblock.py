"""The halves of a block."""

from fretsaw.model.config import BlockConfig


def subblock(name: str) -> BlockConfig:
    """Return a block of which only the one subblock is there."""
    is_ffn = name.startswith("ffn")
    return BlockConfig.from_names("attn_none" if is_ffn else name, name if is_ffn else "ffn_none")


def names_of(block: BlockConfig) -> tuple[str, str]:
    """Return the names of a block's two subblocks."""
    return block.attention_name, block.ffn_name
