"""The chat template of a checkpoint: the one place that knows where a folder keeps it."""

import json
from pathlib import Path

TEMPLATE = "chat_template.jinja"  # the file of a checkpoint


def read_chat_template(folder: Path) -> str | None:
    """Return a checkpoint's chat template, from the file of its own or the tokenizer's config.

    Where the config names several, it is the one called "default", else the first.
    """
    path = folder / TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default", next(iter(named.values()), None))
    return template
