"""The chat format as a Jinja template, for software that renders chats itself.

It gives the same ids as `chat.render`, from the same constants, and stands in every chat
checkpoint. The mode is what the system text asks for, else the variable `enable_thinking` where it
is defined, else on. A last answer's `reasoning_content` (or `reasoning`) is written before it; by
that llama.cpp knows the template of a model that reasons. A template can only write text, so a
message that spells a control token becomes one: there alone the ids differ.
"""

import json
from pathlib import Path

from fretsaw import chat
from fretsaw.artifact import write_json
from fretsaw.chat import HEADER, HEADER_END, Toggle

_SOURCE = Path(__file__).with_suffix(".jinja")


def chat_template(toggle: Toggle) -> str:
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
    return source.render(vars(chat), toggle=toggle, quote=json.dumps, header=_header)


def write_chat_template(folder: Path, toggle: Toggle) -> None:
    """Write chat_template.jinja beside a tokenizer's files, and the toggle into its config."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("chat_template", None)  # older software keeps a template there
    write_json(path, settings | {"reasoning_toggle": toggle})
    (folder / chat.TEMPLATE).write_text(chat_template(toggle), encoding="utf-8")


def _header(role: str, text: str = "") -> str:
    return json.dumps(f"{HEADER}{role}{HEADER_END}\n\n{text}")
