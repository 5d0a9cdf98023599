"""The toggle between reasoning on and off: how a checkpoint is told the mode.

- v1 (Llama-Nemotron v1): the system turn begins with the line "detailed thinking on" or "... off";
  a line of the system text that says just this, in any letter case, is the switch, and any other
  text is the user's own;
- v1.5: "/no_think" or "/think" in the system text, which takes them out; off, the answer's header
  is followed by an empty trace;
- none: not at all, and no system turn but the user's own.
"""

import json
from pathlib import Path
from typing import Literal

from fretsaw.chat.control_tokens import is_chat
from fretsaw.chat.reasoning import CLOSE_TAG, MODES, Mode
from fretsaw.chat.template import read_chat_templates
from fretsaw.chat.tokenizer import Tokenizer

Toggle = Literal["v1", "v1.5", "none"]
TOGGLES: tuple[Toggle, ...] = ("v1", "v1.5", "none")
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

    `reasoning_toggle` in tokenizer_config.json says so. Else its chat template does: one that knows
    /no_think is v1.5; one that knows v1's line, or takes traces out of a history as v1's do, is v1;
    any other has no toggle. Without a template it is v1 where the tokenizer has the format's
    tokens.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    match settings.get("reasoning_toggle"):
        case "v1" | "v1.5" | "none" as toggle:
            return toggle
        case None:
            pass
        case other:
            raise ValueError(
                f"{path}: reasoning_toggle is {other!r}; write one of {', '.join(TOGGLES)}"
            )
    if not is_chat(Tokenizer.from_folder(folder)):
        return "none"
    templates = "".join(read_chat_templates(folder).values())
    if not templates or TOGGLE in templates:
        return "v1"
    return "v1.5" if NO_THINK in templates else "v1" if CLOSE_TAG in templates else "none"
