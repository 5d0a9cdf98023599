"""What the parent's folder says of it: its name, and its licence for the child's card."""

import re
from pathlib import Path

from fretsaw.report.stage_files import read_json

LICENCE_KEYS = ("license", "license_name", "license_link")
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_parent_name(folder: Path) -> str:
    """Return the Hub id where one is known, else the folder's name."""
    cached = _HUB_CACHE.search(str(folder))
    if cached:
        return f"{cached[1]}/{cached[2]}"
    stated = read_json(folder / "config.json").get("_name_or_path", "")
    return stated if is_hub_id(stated) else folder.resolve().name


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a Hub repository's."""
    return bool(_HUB_ID.fullmatch(name))


def read_licence(folder: Path) -> dict[str, str]:
    """Return what the parent's model card says of its licence, if there is one."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    text = readme.read_text(encoding="utf-8", errors="replace")
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    pairs = [line.partition(":") for line in head[1].splitlines()] if head else []
    values = {key: value.strip().strip("'\"") for key, _, value in pairs}
    return {key: values[key] for key in LICENCE_KEYS if values.get(key)}
