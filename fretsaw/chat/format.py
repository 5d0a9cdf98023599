"""Which chat format a checkpoint has, and what ends its texts."""

from pathlib import Path

from fretsaw.chat.control_tokens import HEADER, is_chat
from fretsaw.chat.message import Message
from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.own_format import OwnFormat
from fretsaw.chat.reasoning import MODES, Mode, with_reasoning
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.template import named_tokens, read_chat_templates, where_template
from fretsaw.chat.toggle import NO_THINK, THINK, TOGGLE, Toggle, toggle_of
from fretsaw.chat.tokenizer import Tokenizer


def chat_format(folder: Path, tokenizer: Tokenizer) -> ChatFormat | None:
    """Return how a checkpoint's conversations are written; None for one that only continues text.

    One with a template of its own is rendered by it, and by our renderer where that writes the
    same: the Llama-Nemotron formats, whose toggle it knows. Without a template, a tokenizer that
    has the tokens of that format stands for it. Raises ValueError for a template that is broken.
    """
    templates, toggle = read_chat_templates(folder), toggle_of(folder)
    if not templates:
        return NemotronFormat(tokenizer, toggle) if is_chat(tokenizer) else None
    own = OwnFormat(
        tokenizer,
        templates,
        variables=named_tokens(folder),
        where=str(where_template(folder)),
        toggle=toggle,
    )
    ours = NemotronFormat(tokenizer, toggle)
    if is_chat(tokenizer) and HEADER in templates["default"] and _write_alike(own, ours):
        return ours
    return own


def require_chat_format(folder: Path, tokenizer: Tokenizer) -> ChatFormat:
    """Return a checkpoint's chat format. Raises ValueError for one that only continues text."""
    found = chat_format(folder, tokenizer)
    if found is None:
        raise ValueError(
            f"{folder}: no chat template, and its tokenizer has no {HEADER}, so this is no chat "
            "model; tune it with `fretsaw sft` first, or continue plain text with "
            "`fretsaw generate`"
        )
    return found


def text_ends(tokenizer: Tokenizer, format: ChatFormat | None) -> tuple[int, ...]:
    """Return the ids that end a text or a turn, whichever of the checkpoint's files names them."""
    return tokenizer.eos_token_ids if format is None else format.ends


def _write_alike(own: OwnFormat, ours: NemotronFormat) -> bool:
    """Whether the template writes what our renderer does, the toggle spelt in the system text."""
    try:
        return all(
            own.text_as_it_stands(turns, mode)
            == ours.tokenizer.decode(ours.prompt_ids(turns, mode), skip_special=False)
            for mode in MODES
            for turns in _probes(ours.toggle, mode)
        )
    except ValueError:  # refused by the template
        return False


def _probes(toggle: Toggle, mode: Mode) -> list[list[Message]]:
    """Return conversations of every kind of turn but those with tools."""
    flag = {"on": THINK, "off": NO_THINK}[mode]
    said = {"v1": f"{TOGGLE} {mode}\n\nBe brief.", "v1.5": f"Be brief. {flag}"}
    system, asked = Message("system", said.get(toggle, "Be brief.")), Message("user", "1 + 1?")
    answered = Message("assistant", with_reasoning("one more", "2"))
    return [[system, asked], [system, asked, answered, Message("user", "And 3?")]]
