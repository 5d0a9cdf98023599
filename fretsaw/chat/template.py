"""The chat template of a checkpoint: the one place that knows where a folder keeps it."""

import json
from pathlib import Path
from typing import Any

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
        try:
            return {"default": path.read_text(encoding="utf-8")}
        except UnicodeDecodeError as error:
            at = f"byte {error.start} is not UTF-8"
            raise ValueError(f"{path}: {at}; download it again") from None
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    match settings.get("chat_template"):
        case str(template):
            return {"default": template}
        case list(several):
            return dict(_named(entry, path) for entry in several)
    return {}


def _named(entry: Any, path: Path) -> tuple[str, str]:
    match entry:
        case {"name": str(name), "template": str(template)}:
            return name, template
    raise ValueError(f"{path}: a chat_template without name and template; download it again")
