"""The model card: front matter the Hub reads, and how to load what it describes."""

import json
from pathlib import Path
from typing import Any

import yaml

from fretsaw.checkpoint import llama
from fretsaw.report.findings import read_findings
from fretsaw.report.model_card import model_card


def card_of(inputs: dict[str, Path]) -> tuple[dict[str, Any], str]:
    empty, head, text = model_card(read_findings(inputs)).split("---\n", 2)
    assert not empty
    return yaml.safe_load(head), text


def test_front_matter(finished: dict[str, Path]) -> None:
    head, text = card_of(finished)
    assert head["library_name"] == "transformers"
    assert head["base_model"] == "parent & co"
    assert {"fretsaw", "custom_code", "nemotron-nas"} <= set(head["tags"])
    assert "license" not in head
    assert "trust_remote_code=True" in text
    assert "{{" not in text
    assert "| 1 | gqa2, ffn32 | **attn_none**, ffn32 |" in text


def test_licence_is_the_parents(finished: dict[str, Path]) -> None:
    (finished["parent"] / "README.md").write_text(
        "---\nlanguage:\n- en\nlicense: other\nlicense_name: 'llama 3: community'\n---\n# It\n"
    )
    head, _ = card_of(finished)
    assert head["license"] == "other"
    assert head["license_name"] == "llama 3: community"


def test_base_model_is_the_hub_id_where_known(finished: dict[str, Path]) -> None:
    path = finished["parent"] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "meta/Llama-1B"}))
    assert card_of(finished)[0]["base_model"] == "meta/Llama-1B"


def test_a_plain_llama_needs_no_remote_code(finished: dict[str, Path]) -> None:
    findings = read_findings(finished)
    config = llama.config_to_json(findings.parent, dtype="fp32")
    (finished["child"] / "config.json").write_text(json.dumps(config))
    head, text = card_of(finished)
    assert "custom_code" not in head["tags"]
    assert "trust_remote_code" not in text


def test_tables_are_tables(finished: dict[str, Path]) -> None:
    _, text = card_of(finished)
    lines = text.splitlines()
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if set(line) <= set("|-") and line.startswith("|"):
            assert before.count("|") == line.count("|") == after.count("|")
