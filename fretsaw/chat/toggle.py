"""The toggle between reasoning on and off: how a checkpoint is told the mode.

- v1 (Llama-Nemotron v1): the system turn begins with the line "detailed thinking on" or "... off";
  a line of the system text that says just this, in any letter case, is the switch, and any other
  text is the user's own;
- v1.5: "/no_think" or "/think" in the system text, which takes them out; off, the answer's header
  is followed by an empty trace;
- enable_thinking: the checkpoint's own template has a switch of this name (or "thinking");
- none: not at all, and no system turn but the user's own.
"""

from pathlib import Path
from typing import Literal, get_args

from fretsaw.chat.control_tokens import HEADER, is_chat
from fretsaw.chat.jinja_template import switches
from fretsaw.chat.reasoning import CLOSE_TAG, MODES, Mode
from fretsaw.chat.template import SETTINGS, read_chat_templates, read_settings
from fretsaw.chat.tokenizer import Tokenizer

Toggle = Literal["v1", "v1.5", "enable_thinking", "none"]
TOGGLES: tuple[Toggle, ...] = ("v1", "v1.5", "none")  # those of our own renderer
TOGGLE = "detailed thinking"  # v1, followed by " on" or " off"
THINK, NO_THINK = "/think", "/no_think"  # v1.5
SHIELDED_TAG = "</ think>"  # the closing tag in a system text, which holds a /think


def mode_in(text: str, toggle: Toggle = "v1") -> Mode | None:
    """Return the mode that a system text asks for, None where it asks for none.

    Where a text says both, v1 takes the last and v1.5 /no_think.
    """
    if toggle == "v1":
        for line in reversed(text.split("\n")):
            if (mode := _switched(line)) is not None:
                return mode
        return None
    if toggle == "v1.5":
        text = text.replace(CLOSE_TAG, SHIELDED_TAG)
        return "off" if NO_THINK in text else "on" if THINK in text else None
    return None


def _switched(line: str) -> Mode | None:
    """Return the mode that a line switches to, None where it is the user's own."""
    said = line.strip().lower()
    return next((mode for mode in MODES if said == f"{TOGGLE} {mode}"), None)


def without_lines(text: str) -> str:
    """Return a system text without v1's lines."""
    return "\n".join(line for line in text.split("\n") if _switched(line) is None).strip()


def without_flags(text: str) -> str:
    """Return a system text without v1.5's flags."""
    shielded = text.replace(CLOSE_TAG, SHIELDED_TAG).replace(NO_THINK, "").replace(THINK, "")
    return shielded.replace(SHIELDED_TAG, CLOSE_TAG).strip()


def toggle_of(folder: Path) -> Toggle:
    """Return how a checkpoint is told the mode.

    `reasoning_toggle` in tokenizer_config.json says so. Else its chat templates do: by v1's line,
    by v1.5's flags, by a switch, or, in Llama 3's turns, by taking traces out of a history as v1's
    do; any other has no toggle. Without a template it is v1 where the tokenizer has the tokens of
    Llama 3's format.
    """
    match read_settings(folder).get("reasoning_toggle"):
        case "v1" | "v1.5" | "enable_thinking" | "none" as toggle:
            return toggle
        case None:
            pass
        case other:
            known = ", ".join(get_args(Toggle))
            raise ValueError(
                f"{folder / SETTINGS}: reasoning_toggle is {other!r}; write one of {known}"
            )
    templates = "".join(read_chat_templates(folder).values())
    if not templates:
        return "v1" if is_chat(Tokenizer.from_folder(folder)) else "none"
    if TOGGLE in templates:
        return "v1"
    if HEADER in templates and NO_THINK in templates:
        return "v1.5"
    if switches(templates):
        return "enable_thinking"
    if NO_THINK in templates:
        return "v1.5"
    return "v1" if HEADER in templates and CLOSE_TAG in templates else "none"
