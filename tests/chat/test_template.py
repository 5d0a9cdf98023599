"""The one reader of chat templates: every form in which a folder keeps one."""

import json
from pathlib import Path
from typing import Any

import pytest

from fretsaw.chat.template import TEMPLATE, read_chat_template


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("plain", "plain"),
        (None, None),
        ([], None),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}, {"name": "rag", "template": "r"}], None),
    ],
)
def test_the_tokenizers_config_has_one_or_several(
    tmp_path: Path, setting: Any, found: str | None
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": setting}))
    assert read_chat_template(tmp_path) == found


def test_a_file_of_its_own_wins(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    (tmp_path / TEMPLATE).write_text("file")
    assert read_chat_template(tmp_path) == "file"


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for entries in (["plain"], [{"name": "default"}], [{"template": "t"}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
        with pytest.raises(ValueError, match=r"tokenizer_config\.json: a chat_template without"):
            read_chat_template(tmp_path)
    (tmp_path / TEMPLATE).write_bytes(b"{{ \xff }}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja: byte 3 is not UTF-8"):
        read_chat_template(tmp_path)


def test_server_export_and_toggle_read_it_here() -> None:
    """No other place looks for a template in a tokenizer's config."""
    package = Path(__file__).parents[2] / "fretsaw"
    readers = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if '.get("chat_template")' in path.read_text()
    ]
    assert readers == ["chat/template.py"]
