"""The chat template of a checkpoint: the one place that knows where a folder keeps it."""

import json
from pathlib import Path

TEMPLATE = "chat_template.jinja"  # the file of a checkpoint


def read_chat_template(folder: Path) -> str | None:
    """Return a checkpoint's chat template, None where it has none.

    Where the tokenizer's config names several, it is the one called "default".
    """
    return read_chat_templates(folder).get("default")


def read_chat_templates(folder: Path) -> dict[str, str]:
    """Return a checkpoint's templates by name, from the file of its own or the tokenizer's config.

    One that stands alone is the "default".
    """
    path = folder / TEMPLATE
    if path.is_file():
        return {"default": path.read_text(encoding="utf-8")}
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    match settings.get("chat_template"):
        case str(template):
            return {"default": template}
        case list(several):
            return {entry["name"]: entry["template"] for entry in several}
    return {}
