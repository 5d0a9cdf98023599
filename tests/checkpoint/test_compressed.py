"""compressed-tensors: what is written is read back, in any mixture; what is not ours is refused."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from patterns import PATTERNS, ids_of, make

from fretsaw.checkpoint import folder
from fretsaw.checkpoint.beside import read_precisions, write_precisions
from fretsaw.checkpoint.compressed import quantisation_to_json, with_quantisation
from fretsaw.checkpoint.headers import read_headers
from fretsaw.model.config import ModelConfig
from fretsaw.model.quantised import everywhere, quantised

MIXED = [("gqa4@fp8", "ffn256"), ("gqa4", "ffn256@int8"), ("gqa1@int8", "ffn100@fp8")]


def uniform(precision: Any = "fp8") -> ModelConfig:
    config = make(PATTERNS["uniform"]).config
    return replace(config, blocks=everywhere(config, precision))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_every_pattern_comes_back(pattern: str, precision: Any) -> None:
    config = make(PATTERNS[pattern]).config
    stored = replace(config, blocks=everywhere(config, precision))
    assert with_quantisation(config, quantisation_to_json(stored)) == stored


def test_a_mixture_is_written_and_read(tmp_path: Path) -> None:
    full = make([(a.partition("@")[0], f.partition("@")[0]) for a, f in MIXED])
    config = make(MIXED).config
    mixed = quantised(full, config.blocks)
    folder.save(mixed, tmp_path / "mixed", dtype="bf16")
    loaded = folder.load_served(tmp_path / "mixed")
    assert loaded.config.blocks == config.blocks
    raw = json.loads((tmp_path / "mixed/config.json").read_text())["quantization_config"]
    assert raw["format"] == "mixed-precision"
    assert {g["format"] for g in raw["config_groups"].values()} == {
        "float-quantized",
        "int-quantized",
    }
    types = {name: entry.dtype for name, entry in read_headers(tmp_path / "mixed").items()}
    assert types["model.layers.0.self_attn.q_proj.weight"] == "F8_E4M3"
    assert types["model.layers.0.self_attn.q_proj.weight_scale"] == "F32"
    assert types["model.layers.0.mlp.up_proj.weight"] == "BF16"
    assert types["model.layers.1.mlp.up_proj.weight"] == "I8"
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter.copy_(parameter.bfloat16())
        assert torch.equal(loaded(ids_of(2, 20)), mixed(ids_of(2, 20)))


def test_alike_layers_are_one_group_of_linear() -> None:
    raw = quantisation_to_json(uniform("int8"))
    assert [group["targets"] for group in raw["config_groups"].values()] == [["Linear"]]
    assert raw["ignore"] == ["lm_head"]
    assert raw["format"] == "int-quantized"


def test_what_is_for_serving_is_not_trained(tmp_path: Path) -> None:
    folder.save(quantised(make(PATTERNS["uniform"]), uniform().blocks), tmp_path / "fp8")
    assert folder.load_served(tmp_path / "fp8").config.is_quantised
    with pytest.raises(ValueError, match="in 8 bits, for serving and evaluating only"):
        folder.load(tmp_path / "fp8")
    with pytest.raises(ValueError, match="in 8 bits already, so they can't be put in int8"):
        folder.load_served(tmp_path / "fp8", weights="int8")


def test_the_precisions_chosen_go_with_the_checkpoint(tmp_path: Path) -> None:
    decoder, config = make([("gqa4", "ffn256")] * 2), make([("gqa4@int8", "ffn256")] * 2).config
    folder.save(decoder, tmp_path / "plain")
    assert read_precisions(tmp_path / "plain") is None
    folder.save(decoder, tmp_path / "child")
    write_precisions(tmp_path / "child", config.blocks)
    (tmp_path / "healed").mkdir()
    folder.write(decoder, tmp_path / "healed", served_as=tmp_path / "child")
    assert folder.read_served_config(tmp_path / "healed").blocks == config.blocks
    assert folder.load(tmp_path / "healed").config.blocks == decoder.config.blocks
    assert folder.load_served(tmp_path / "healed").config.blocks == config.blocks
    assert folder.load_served(tmp_path / "healed", weights="full").config == decoder.config
    folder.save(decoder, tmp_path / "copied", like=tmp_path / "child")
    assert read_precisions(tmp_path / "copied") is None


def changed(*path: str, value: Any) -> dict[str, Any]:
    raw = deepcopy(quantisation_to_json(uniform()))
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return raw


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (changed("quant_method", value="gptq"), "is of 'gptq', and only compressed-tensors"),
        (changed("kv_cache_scheme", value={}), "keys and values quantised too"),
        (changed("ignore", value=[]), "the output matrix is quantised"),
        (changed("config_groups", "group_0", "weights", "num_bits", value=4), "weights in 4 bits"),
        (
            changed("config_groups", "group_0", "input_activations", "dynamic", value=False),
            "only 8 bits by channel with dynamic activations",
        ),
        (
            changed("config_groups", "group_0", "targets", value=["re:.*q_proj"]),
            "layer 0 has its attention's matrices in several precisions",
        ),
    ],
)  # fmt: skip
def test_other_formats_are_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_quantisation(uniform().in_full, raw)
