"""The reference's rules give lm-evaluation-harness's own verdicts, strict and loose."""

import json
from pathlib import Path

import pytest
from ifeval_oracle import answers_to, is_compared, load_oracle, oracle_verdicts, texts_of_models

from fretsaw.grade.instructions.grade import judge

ROWS = "ifeval/input_data_lines_001-299.jsonl"


@pytest.mark.slow
def test_the_reference_is_the_reference(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = load_oracle(monkeypatch)
    texts = texts_of_models(data_folder)
    compared: dict[str, set[bool]] = {}
    wrong = []
    for line in (data_folder / ROWS).read_text().splitlines():
        row = json.loads(line)
        for answer in answers_to(row, texts, seed=0):
            ours = judge(answer, {**row, "rules": "reference"})
            theirs = oracle_verdicts(oracle, row, answer)
            for verdict, kwargs, wanted in zip(ours, row["kwargs"], theirs, strict=True):
                if not is_compared(verdict.id, kwargs):
                    continue
                compared.setdefault(verdict.id, set()).add(wanted[0])
                if (verdict.strict, verdict.loose) != wanted:
                    wrong.append((row["key"], kwargs, verdict, wanted, answer))
    assert wrong == []
    assert len(compared) == 24
    assert [id for id, seen in compared.items() if len(seen) < 2] == []  # it passed, and it failed
