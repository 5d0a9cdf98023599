"""The tokens that turns are made of, in Llama 3's format."""

from fretsaw.chat.tokenizer import Tokenizer

HEADER, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
CONTROL_TOKENS = (HEADER, HEADER_END, TURN_END)


def add_control_tokens(tokenizer: Tokenizer) -> list[str]:
    """Give a tokenizer the tokens of the format that it lacks; return those."""
    missing = [token for token in CONTROL_TOKENS if tokenizer.token_id(token) is None]
    tokenizer.add_special_tokens(missing)
    tokenizer.end_texts_with(TURN_END)
    return missing


def is_chat(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has the tokens of the format."""
    return all(tokenizer.token_id(token) is not None for token in CONTROL_TOKENS)


def control_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of one of them. Raises ValueError for a tokenizer without it."""
    id = tokenizer.token_id(token)
    if id is None:
        raise ValueError(
            f"chat: the tokenizer has no {token}, so this is no chat model; tune it with "
            "`fretsaw sft` first, or continue plain text with `fretsaw generate` (chat formats "
            "other than Llama 3's are not rendered)"
        )
    return id
