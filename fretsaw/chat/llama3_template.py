"""The chat format of `render.py` as a Jinja template, for software that renders chats itself.

It gives the same ids as `render.py`, from the same constants, and stands in every chat
checkpoint. The mode is what the system text asks for, else the variable `enable_thinking` where it
is defined, else on. A last answer's `reasoning_content` (or `reasoning`) is written before it; by
that llama.cpp knows the template of a model that reasons. A template can only write text, so a
message that spells a control token becomes one: there alone the ids differ.
"""

import json
from pathlib import Path

from fretsaw.chat import control_tokens, reasoning, toggle, tools
from fretsaw.chat.control_tokens import HEADER, HEADER_END
from fretsaw.chat.template import TEMPLATE
from fretsaw.chat.toggle import Toggle
from fretsaw.stage.whole import write_json

_CONSTANTS = vars(control_tokens) | vars(reasoning) | vars(toggle) | vars(tools)
_SOURCE = Path(__file__).with_suffix(".jinja")


def chat_template(told: Toggle) -> str:
    """Return the template of a checkpoint that is told the mode in this way."""
    import jinja2

    environment = jinja2.Environment(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        undefined=jinja2.StrictUndefined,
    )
    source = environment.from_string(_SOURCE.read_text(encoding="utf-8"))
    return source.render(_CONSTANTS, toggle=told, quote=json.dumps, header=_header)


def write_chat_template(folder: Path, told: Toggle) -> None:
    """Write chat_template.jinja beside a tokenizer's files, and the toggle into its config."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("chat_template", None)  # older software keeps a template there
    write_json(path, settings | {"reasoning_toggle": told})
    (folder / TEMPLATE).write_text(chat_template(told), encoding="utf-8")


def _header(role: str, text: str = "") -> str:
    return json.dumps(f"{HEADER}{role}{HEADER_END}\n\n{text}")
