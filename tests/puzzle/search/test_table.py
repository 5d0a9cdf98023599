"""The search table's JSON form, and what it refuses."""

import copy
import json

import pytest

from fretsaw.puzzle.search.table_json import (
    read_table,
    table_from_json,
    table_to_json,
    write_table,
)

TABLE = {
    "units": {"runtime_ms": "ms"},
    "fixed": {"runtime_ms": 1.5},
    "layers": [
        {
            "attention": {
                "gqa4": {"score": 0, "runtime_ms": 2.0, "memory_mib": 9},
                "attn_none": {"score": 0.5, "runtime_ms": 0, "memory_mib": 0},
            },
            "ffn": {"ffn384": {"score": 0, "runtime_ms": 3.5, "memory_mib": 4}},
        },
        {"block": {"whole": {"score": -0.1, "runtime_ms": 5, "memory_mib": 7}}},
    ],
}


def test_both_forms_come_back_as_written(tmp_path):
    table = table_from_json(TABLE)
    assert table.cost_names == ("runtime_ms", "memory_mib")
    assert table.layers[0]["attention"]["gqa4"].costs == {"runtime_ms": 2.0, "memory_mib": 9}
    assert table.layers[1]["block"]["whole"].score == -0.1
    write_table(tmp_path / "table.json", table)
    assert json.loads((tmp_path / "table.json").read_text()) == TABLE
    assert read_table(tmp_path / "table.json") == table


def test_pairs_and_joint_scores_of_a_layer(tmp_path):
    value = copy.deepcopy(TABLE)
    pair = {"choices": [[0, "gqa4"], [1, "whole"]], "score": -0.2}
    value["pairs"] = [pair]
    value["layers"][0]["blocks"] = {"attn_none+ffn384": {"score": 0.7}}
    table = table_from_json(value)
    joint = {"choices": [[0, "attn_none"], [0, "ffn384"]], "score": pytest.approx(0.7 - 0.5)}
    assert table_to_json(table)["pairs"] == [pair, joint]
    write_table(tmp_path / "table.json", table)
    assert read_table(tmp_path / "table.json") == table


def edited(edit) -> dict:
    value = copy.deepcopy(TABLE)
    edit(value)
    return value


def _gqa4(value) -> dict:
    return value["layers"][0]["attention"]["gqa4"]


def _pair(*choices) -> dict:
    return {"choices": list(choices), "score": 1.0}


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda v: _gqa4(v).pop("score"), "layer 0, attention 'gqa4' has no score"),
        (lambda v: _gqa4(v).update(score=float("nan")), "layer 0, attention 'gqa4', score is nan"),
        (lambda v: _gqa4(v).update(runtime_ms="2"), "layer 0, attention 'gqa4', runtime_ms is '2'"),
        (lambda v: _gqa4(v).update(runtime_ms=True), "runtime_ms is True"),
        (
            lambda v: v["layers"][1]["block"]["whole"].pop("memory_mib"),
            "layer 1, block 'whole' lacks 'memory_mib'",
        ),
        (
            lambda v: v["layers"][1]["block"]["whole"].update(params=3),
            "layer 1, block 'whole' has 'params'",
        ),
        (lambda v: v["layers"][0]["ffn"].clear(), "layer 0 has no alternative for its ffn"),
        (lambda v: v["layers"][0].pop("ffn"), "layer 0 has attention; a layer is"),
        (lambda v: v["layers"].__setitem__(1, {}), "layer 1 has nothing"),
        (lambda v: v["layers"].__setitem__(1, [1]), "layer 1 is"),
        (lambda v: v["layers"].clear(), "no layers"),
        (lambda v: v.pop("layers"), "no list"),
        (lambda v: v["fixed"].update(runtime=1), "did you mean 'runtime_ms'"),
        (lambda v: v.update(spans=[{"layers": [0, 1]}]), "the span 0-1 has no score"),
        (lambda v: v.update(limit=3), "unknown key 'limit'"),
        (lambda v: v.update(pairs={}), "pairs is {}; it must be a list"),
        (lambda v: v.update(pairs=[_pair([0, "gqa4"])]), "write [[layer"),
        (lambda v: v.update(pairs=[_pair(["0", "gqa4"], [1, "whole"])]), "write [[layer"),
        (lambda v: v.update(pairs=[_pair([0, "gqa4"], [2, "whole"])]), "layer 2, but there are 2"),
        (lambda v: v.update(pairs=[_pair([0, "gqa4"], [1, "hole"])]), "layer 1 has no alternative"),
        (lambda v: v.update(pairs=[_pair([0, "gqa4"], [0, "attn_none"])]), "one subblock twice"),
        (lambda v: v["layers"][0].update(blocks={"gqa4": {"score": 1}}), "is not its attention"),
    ],
)
def test_refused_tables_name_the_place(edit, complaint):
    with pytest.raises(ValueError, match="search table: ") as error:
        table_from_json(edited(edit))
    assert complaint in str(error.value)


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_table(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_table(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"layers": "\xff"}', "line 1: byte 12 is not UTF-8"),
        (b'{"layers": NaN}', "NaN is no JSON number"),
        (b'{"layers": 1, "layers": 2}', "the key 'layers' stands twice"),
        (b'{"units": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
    ],
)
def test_a_table_file_that_cannot_be_read_is_named(tmp_path, raw, message):
    path = tmp_path / "table.json"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=rf"table\.json.*{message}"):
        read_table(path)
