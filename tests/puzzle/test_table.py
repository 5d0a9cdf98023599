"""The search table's JSON form, what it refuses, and the default alternatives."""

import copy
import json

import pytest

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.puzzle.table import default_alternatives, read_table, table_from_json, write_table

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


def uniform(**fields) -> ModelConfig:
    defaults = {"vocab_size": 64, "hidden_size": 64, "num_attention_heads": 8, "head_dim": 8}
    return ModelConfig.uniform(**(defaults | {"num_hidden_layers": 2} | fields))


def test_both_forms_come_back_as_written(tmp_path):
    table = table_from_json(TABLE)
    assert table.cost_names == ("runtime_ms", "memory_mib")
    assert table.layers[0]["attention"]["gqa4"].costs == {"runtime_ms": 2.0, "memory_mib": 9}
    assert table.layers[1]["block"]["whole"].score == -0.1
    write_table(tmp_path / "table.json", table)
    assert json.loads((tmp_path / "table.json").read_text()) == TABLE
    assert read_table(tmp_path / "table.json") == table


def edited(edit) -> dict:
    value = copy.deepcopy(TABLE)
    edit(value)
    return value


def _gqa4(value) -> dict:
    return value["layers"][0]["attention"]["gqa4"]


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
        (lambda v: v.update(spans=[{"layers": [0, 1]}]), "not supported yet"),
        (lambda v: v.update(limit=3), "unknown key 'limit'"),
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


def test_default_alternatives_of_an_8b():
    config = uniform(num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336)
    attention, ffn = default_alternatives(config)
    assert attention == ("gqa8", "gqa4", "gqa2", "gqa1", "attn_none")
    # 25 % is 3584; 10 % is 1433.6, whose nearest multiple of 256 is 1536
    assert ffn == ("ffn14336", "ffn10752", "ffn7168", "ffn3584", "ffn1536", "ffn_none")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [(9, 9, [9, 3, 1]), (12, 6, [6, 3, 1]), (8, 1, [1]), (10, 5, [5, 1])],
)
def test_kv_heads_go_to_the_next_divisor(heads, kv_heads, expected):
    config = uniform(num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=384)
    attention, ffn = default_alternatives(config)
    assert attention == (*(f"gqa{n}" for n in expected), "attn_none")
    assert ffn == ("ffn384", "ffn288", "ffn192", "ffn96", "ffn32", "ffn_none")


def test_tiny_widths_are_not_repeated():
    _, ffn = default_alternatives(uniform(num_key_value_heads=1, intermediate_size=16))
    assert ffn == ("ffn16", "ffn8", "ffn_none")


def test_unequal_layers_need_named_alternatives():
    config = uniform(num_key_value_heads=4, intermediate_size=384)
    blocks = (config.blocks[0], BlockConfig.from_names("attn_none", "ffn384"))
    unequal = ModelConfig(
        vocab_size=64, hidden_size=64, num_attention_heads=8, head_dim=8, blocks=blocks
    )
    with pytest.raises(ValueError, match="layers differ"):
        default_alternatives(unequal)
