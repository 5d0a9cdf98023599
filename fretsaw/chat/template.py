"""The chat template of a checkpoint: the one place that knows where a folder keeps it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPLATE = "chat_template.jinja"  # the file of a checkpoint
OTHERS = "additional_chat_templates"  # the folder of those with a name
SETTINGS = "tokenizer_config.json"
_NAME = re.compile(r"\w[\w.-]*")


def read_settings(folder: Path, file: str = SETTINGS) -> dict[str, Any]:
    """Return what a file of the tokenizer's says; nothing where it is not there."""
    path = folder / file
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_chat_template(folder: Path) -> str | None:
    """Return a checkpoint's chat template, None where it has none.

    Where the tokenizer's config names several, it is the one called "default".
    """
    return read_chat_templates(folder).get("default")


def read_chat_templates(folder: Path) -> dict[str, str]:
    """Return a checkpoint's templates by name, from the file of its own or the tokenizer's config.

    One that stands alone is the "default".
    """
    if (folder / TEMPLATE).is_file():
        others = sorted((folder / OTHERS).glob("*.jinja"))
        return {"default": _read(folder / TEMPLATE), **{one.stem: _read(one) for one in others}}
    match read_settings(folder).get("chat_template"):
        case str(template):
            return {"default": template}
        case list(several):
            return dict(_named(entry, folder / SETTINGS) for entry in several)
    return {}


def where_template(folder: Path) -> Path:
    """Return the file that holds a checkpoint's template."""
    own = folder / TEMPLATE
    return own if own.is_file() else folder / SETTINGS


def named_tokens(folder: Path) -> dict[str, Any]:
    """Return the names of special tokens that templates may use, such as `bos_token`."""
    named: dict[str, Any] = {}
    for file in ("special_tokens_map.json", SETTINGS):
        for key, token in read_settings(folder, file).items():
            name = token.get("content") if isinstance(token, dict) else token
            if key.endswith("_token") and isinstance(name, str):
                named[key] = name
    return named


def write_chat_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Write a checkpoint's templates, the "default" one as the file that stands alone."""
    for name, template in templates.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"chat template {name!r}: its name is no file's; rename it")
        path = folder / TEMPLATE if name == "default" else folder / OTHERS / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        at = f"byte {error.start} is not UTF-8"
        raise ValueError(f"{path}: {at}; download it again") from None


def _named(entry: Any, path: Path) -> tuple[str, str]:
    match entry:
        case {"name": str(name), "template": str(template)}:
            return name, template
    raise ValueError(f"{path}: a chat_template without name and template; download it again")
