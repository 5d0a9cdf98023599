"""The chat format that a checkpoint is taught: the one it has, with a toggle; else ours."""

from collections.abc import Sequence
from pathlib import Path

from fretsaw.chat.control_tokens import add_control_tokens
from fretsaw.chat.format import chat_format
from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.own_format import OwnFormat
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.tokenizer import Tokenizer


def taught_format(folder: Path, tokenizer: Tokenizer) -> tuple[ChatFormat, list[str]]:
    """Return the format that a checkpoint is taught, and the tokens it lacked.

    A checkpoint's own template is kept as it is, and so are its tokens; one without a toggle learns
    v1's line in its system turn. One without a format learns Llama 3's, whose tokens are added to
    `tokenizer`.
    """
    found = chat_format(folder, tokenizer)
    if isinstance(found, OwnFormat):
        return found if found.toggle != "none" else found.with_toggle("v1"), []
    added = add_control_tokens(tokenizer)
    keeps = found is not None and found.toggle == "v1.5"
    return NemotronFormat(tokenizer, "v1.5" if keeps else "v1"), added


def told(format: ChatFormat, added: Sequence[str]) -> str:
    """Return what tuning does with the format, for the screen."""
    taught = {
        "v1": 'by the line "detailed thinking on" or "off" of the system turn',
        "v1.5": "by /think and /no_think in the system text",
        "enable_thinking": "by the template's own switch",
    }
    tokens = f"tokens added: {', '.join(added)}" if added else "no token is added"
    return (
        f"conversations are written in {format.name}; {tokens}; the mode is told "
        f"{taught[format.toggle]}"
    )
