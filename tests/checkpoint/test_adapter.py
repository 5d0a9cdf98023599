"""LoRA adapters: opened as the checkpoint that PEFT computes with, or refused by name."""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import fretsaw
from fretsaw.chat.template import read_chat_template
from fretsaw.checkpoint import adapter as adapters
from fretsaw.checkpoint import folder
from fretsaw.checkpoint.hub import resolve
from fretsaw.cli import main
from fretsaw.export.export import export
from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.model.decoder import Decoder
from fretsaw.stage.artifact import hash_path, read_manifest

CONFIG = ModelConfig.uniform(
    num_hidden_layers=2,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=64,
    hidden_size=32,
    num_attention_heads=4,
    head_dim=8,
    eos_token_ids=(2,),
)
Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
TABLE, HEAD = "model.embed_tokens", "lm_head"
SHAPES = {Q: (32, 32), UP: (48, 32), HEAD: (64, 32)}
IDS = torch.arange(20).view(2, 10)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 4


def make(config: ModelConfig, seed: int = 0) -> Decoder:
    decoder = Decoder(config)
    decoder.init_weights(seed)
    return decoder


def make_base(path: Path, config: ModelConfig = CONFIG, dtype: str = "fp32") -> Path:
    folder.save(make(config), path, dtype=dtype)
    return path


def factors(*modules: str, rank: int = 4, ranks: Mapping[str, int] | None = None) -> dict:
    tensors = {}
    for i, module in enumerate(modules):
        (out, into), own = SHAPES[module], (ranks or {}).get(module, rank)
        tensors[f"{module}.lora_A.weight"] = random(own, into, seed=2 * i)
        tensors[f"{module}.lora_B.weight"] = random(out, own, seed=2 * i + 1)
    return tensors


def write_adapter(path: Path, tensors: Mapping[str, Tensor], **changes: Any) -> Path:
    path.mkdir(exist_ok=True)
    raw = {"peft_type": "LORA", "base_model_name_or_path": "../base", "r": 4, "lora_alpha": 8}
    (path / adapters.CONFIG).write_text(json.dumps(raw | changes))
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, path / adapters.WEIGHTS)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def plain(base: Path, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", factors(Q, UP))


def weights_of(path: Path) -> dict[str, Tensor]:
    return folder.load(resolve(path)).state_dict()


# --- what is computed ----------------------------------------------------------------------------


def test_factors_are_added_in_float32_and_nothing_else_changes(base: Path, plain: Path) -> None:
    before, after = folder.load(base).state_dict(), weights_of(plain)
    tensors = factors(Q, UP)
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        if module in (Q, UP):
            change = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
            torch.testing.assert_close(after[name], weight + 8 / 4 * change, atol=1e-6, rtol=0)
        else:
            assert torch.equal(after[name], weight)


@pytest.mark.parametrize(
    ("changes", "rank", "scale"),
    [
        ({"use_rslora": True}, 4, 8 / math.sqrt(4)),
        ({"rank_pattern": {"q_proj": 2}}, 2, 8 / 2),
        ({"rank_pattern": {"layers.1.self_attn.q_proj": 2}}, 4, 8 / 4),
        ({"alpha_pattern": {r"layers\.\d+\.self_attn\.q_proj": 3}}, 4, 3 / 4),
        ({"alpha_pattern": {"proj": 3}}, 4, 8 / 4),  # a part of a name is no name
        ({"alpha_pattern": {".*_proj": 3.5, "q_proj": 5}}, 4, 3.5 / 4),  # the first counts
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 6}}, 2, 6 / 2),
        ({"lora_dropout": 0.1, "fan_in_fan_out": True, "bias": "all"}, 4, 8 / 4),
        ({"r": 2, "init_lora_weights": "gaussian"}, 2, 8 / 2),
    ],
)
def test_scales_are_pefts(base: Path, tmp_path: Path, changes: Any, rank: int, scale: float):
    tensors = factors(Q, rank=rank)
    opened = weights_of(write_adapter(tmp_path / "adapter", tensors, **changes))
    change = tensors[f"{Q}.lora_B.weight"] @ tensors[f"{Q}.lora_A.weight"]
    expected = folder.load(base).state_dict()[f"{Q}.weight"] + scale * change
    torch.testing.assert_close(opened[f"{Q}.weight"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_is_changed_without_the_head(tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "base", replace(CONFIG, tie_word_embeddings=tied))
    tensors = {
        f"{TABLE}.lora_embedding_A": random(4, 64),
        f"{TABLE}.lora_embedding_B": random(32, 4, seed=1),
    }
    path = resolve(write_adapter(tmp_path / "adapter", tensors))
    assert not folder.read_config(path).tie_word_embeddings
    before, after = folder.load(base).state_dict(), folder.load(path).state_dict()
    change = 2 * (tensors[f"{TABLE}.lora_embedding_B"] @ tensors[f"{TABLE}.lora_embedding_A"]).T
    table = before[f"{TABLE}.weight"]
    torch.testing.assert_close(after[f"{TABLE}.weight"], table + change, atol=1e-6, rtol=0)
    assert torch.equal(after["lm_head.weight"], table if tied else before["lm_head.weight"])


def test_whole_tensors_take_the_bases_place(tmp_path: Path) -> None:
    make_base(tmp_path / "base", replace(CONFIG, tie_word_embeddings=True))
    whole = {
        f"{TABLE}.weight": random(70, 32),  # the vocabulary grew
        "lm_head.weight": random(70, 32, seed=1),
        "model.norm.weight": random(32),
    }
    again = {
        "lm_head.modules_to_save.weight": whole["lm_head.weight"].clone(),
        "lm_head.original_module.weight": random(70, 32, seed=2),
    }
    path = resolve(write_adapter(tmp_path / "adapter", factors(Q) | whole | again))
    config = folder.check(path)
    assert (config.vocab_size, config.tie_word_embeddings) == (70, False)
    opened = folder.load(path).state_dict()
    assert all(torch.equal(opened[name], tensor) for name, tensor in whole.items())


def test_a_base_in_16_bits_shards_and_other_layers(tmp_path: Path) -> None:
    from fretsaw.checkpoint import headers, shards

    blocks = blocks_from_names([("gqa1", "ffn20"), ("attn_linear", "ffn48")])
    base = make_base(tmp_path / "base", replace(CONFIG, blocks=blocks), dtype="bf16")
    state = folder.load(base).state_dict()
    (base / headers.SINGLE).unlink()
    shards.write_tensors(base, state, dtype=torch.bfloat16, max_shard_bytes=6_000)
    path = resolve(write_adapter(tmp_path / "adapter", factors(Q, UP)))
    assert folder.read_dtype(path) == "bf16"
    opened = folder.load(path).state_dict()
    assert not torch.equal(opened[f"{UP}.weight"], opened[f"{UP}.weight"].bfloat16().float())
    assert torch.equal(opened["lm_head.weight"], state["lm_head.weight"])


# --- what is found -------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", ["../base", "base", "{tmp}/base"])
def test_a_base_is_found_beside_the_adapter_and_then_here(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str
) -> None:
    write_adapter(plain, factors(Q), base_model_name_or_path=stated.format(tmp=tmp_path))
    monkeypatch.chdir(tmp_path)
    assert folder.load(resolve("adapter")).config == CONFIG


def test_a_base_on_the_hub_is_asked_for_by_its_revision(
    base: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def download(name: str, *, revision: str | None, **_: Any) -> str:
        asked[name] = revision
        return str(plain if name == "them/adapter" else base)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    write_adapter(plain, factors(Q), base_model_name_or_path="us/base", revision="v2")
    opened = resolve("them/adapter")
    assert asked == {"them/adapter": None, "us/base": "v2"}
    assert opened.name == "adapter"
    assert folder.check(opened) == CONFIG
    assert resolve("them/adapter", weights=False) == base  # for its shapes alone


def test_the_tokenizer_is_the_adapters_where_it_has_one(
    stories_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(stories_folder, base)
    (base / "chat_template.jinja").write_text("of the base")
    tensors = {
        "model.layers.0.self_attn.q_proj.lora_A.weight": random(4, 64),
        "model.layers.0.self_attn.q_proj.lora_B.weight": random(64, 4),
    }
    path = write_adapter(tmp_path / "adapter", tensors)
    assert (resolve(path) / "tokenizer.json").resolve() == (base / "tokenizer.json").resolve()
    assert read_chat_template(resolve(path)) == "of the base"
    settings = {"chat_template": [{"name": "default", "template": "own"}]}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_chat_template(resolve(path)) == "own"
    assert (resolve(path) / "tokenizer_config.json").resolve().parent == base.resolve()
    shutil.copy(base / "tokenizer.json", path)
    assert (resolve(path) / "tokenizer.json").resolve().parent == path.resolve()
    assert (resolve(path) / "tokenizer_config.json").resolve().parent == path.resolve()
    (path / "tokenizer_config.json").unlink()
    assert read_chat_template(resolve(path)) == "of the base"
    assert fretsaw.load(path).generate("Once", max_tokens=4)


def test_its_hash_is_of_both(base: Path, plain: Path) -> None:
    first = hash_path(resolve(plain))
    assert hash_path(resolve(plain)) == first
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, base / "model.safetensors")
    second = hash_path(resolve(plain))
    write_adapter(plain, factors(Q))
    assert len({first, second, hash_path(resolve(plain))}) == 3


def test_what_is_opened_is_said_once(
    plain: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        resolve(plain)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(plain) in line
    assert f"merged into {plain / '../base'}" in line


def test_an_adapter_beside_weights_is_not_applied_and_told(
    base: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in plain.iterdir():
        shutil.copy(file, base)
    assert resolve(base) == base
    (line,) = capsys.readouterr().err.splitlines()
    assert "not applied; to apply it, move it" in line
    assert folder.check(base) == CONFIG


def test_an_adapter_with_its_bases_config_is_an_adapter(base: Path, plain: Path) -> None:
    shutil.copy(base / "config.json", plain)
    assert resolve(plain) != plain


# --- the commands --------------------------------------------------------------------------------


def test_commands_take_an_adapter(
    stories_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = {
        "model.layers.0.self_attn.q_proj.lora_A.weight": random(4, 64),
        "model.layers.0.self_attn.q_proj.lora_B.weight": random(64, 4),
    }
    stated = os.path.relpath(stories_folder, tmp_path / "adapter")
    path = write_adapter(tmp_path / "adapter", tensors, base_model_name_or_path=stated)
    assert main(["inspect", str(path)]) == 0
    assert "parameters, 5 layers" in capfd.readouterr().out
    assert main(["export", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(["generate", str(path), "Once", "--max-tokens", "3"]) == 0
    assert main(["export", str(path), "--out", str(tmp_path / "out")]) == 0
    opened, exported = (folder.load(one) for one in (resolve(path), tmp_path / "out"))
    assert torch.equal(opened(IDS), exported(IDS))
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(theirs(IDS).logits, opened(IDS), atol=1e-4, rtol=0)
    write_adapter(path, tensors, base_model_name_or_path=stated, use_dora=True)
    for command in (["export", str(path), "--out", str(tmp_path / "x"), "--dry-run"],):
        assert main(command) == 2
        assert "use_dora" in capfd.readouterr().err


def test_a_stage_knows_an_adapter_by_its_base_too(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny / "parent", base)
    tensors = {f"{Q}.lora_A.weight": random(4, 32), f"{Q}.lora_B.weight": random(32, 4)}
    path = write_adapter(tmp_path / "adapter", tensors)
    sizes = ["--tokens", "128", "--seq-len", "64"]
    inputs = ["--parent", str(path), "--corpus", str(tiny / "corpus")]
    command = ["rank", *inputs, *sizes, "--out", str(tmp_path / "ranking")]
    assert main([*command, "--dry-run"]) == 0
    assert main(command) == 0
    made_of = read_manifest(tmp_path / "ranking")["inputs"]["parent"]
    assert made_of["hash"] == hash_path(resolve(path)) != hash_path(base)
    folder.save(make(folder.read_config(base), seed=1), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", base)
    assert made_of["hash"] != hash_path(resolve(path))
    write_adapter(path, {f"{Q}.lora_A.weight": random(4, 32)})
    capfd.readouterr()
    assert main([*command, "--dry-run"]) == 2
    assert "one factor of" in capfd.readouterr().err


# --- what is refused -----------------------------------------------------------------------------

EXTRA = {"extra": random(4)}


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({}, {"peft_type": "IA3"}, "peft_type is 'IA3', and only LORA"),
        ({}, {"peft_type": None}, "peft_type is None"),
        ({}, {"use_dora": True}, "use_dora is True.*merge_and_unload"),
        ({}, {"lora_bias": True}, "lora_bias"),
        ({}, {"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({}, {"target_parameters": ["q_proj.weight"]}, "target_parameters"),
        ({}, {"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({}, {"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({}, {"of_tomorrow": {"a": 1}}, "of_tomorrow"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*takes a part out"),
        ({}, {"init_lora_weights": "olora"}, "takes a part out"),
        ({}, {"r": 0}, "r is 0, and a rank"),
        ({}, {"r": True}, "r is True"),
        ({}, {"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({}, {"lora_alpha": math.inf}, "lora_alpha is inf"),
        ({}, {"rank_pattern": {"(": 4}}, "no regular expression"),
        ({}, {"rank_pattern": [4]}, "it is an object"),
        ({}, {"rank_pattern": {"q_proj": "4"}}, "q_proj is '4', and a rank"),
        ({}, {"base_model_name_or_path": None}, "write there the folder or the Hub id"),
        ({}, {"base_model_name_or_path": "../nowhere"}, "its base is not there: .*no such folder"),
        ({}, {"base_model_name_or_path": "owner/name"}, "the Hub could not be reached"),
        ({}, {"base_model_name_or_path": "."}, "is an adapter itself.*fretsaw export"),
        ({}, {"r": 8}, r"lora_A.weight is \(4, 32\), and to fit .* it would be \(8, 32\)"),
        ({f"{Q}.lora_A.weight": random(4, 30)}, {}, r"\(4, 30\)"),
        ({f"{UP}.lora_A.weight": random(4, 32)}, {}, "one factor of .*up_proj and not both"),
        ({f"{Q}.lora_embedding_A": random(4, 32)}, {}, "beside other factors"),
        ({"score.weight": random(2, 32)}, {}, "changes score.weight, which its base"),
        ({"lm_head.original_module.weight": random(64, 32)}, {}, "original_module.weight, which"),
        ({f"{Q}.bias": random(32)}, {}, "q_proj.bias, which its base"),
        ({f"{Q}.lora_magnitude_vector": random(32)}, {}, "lora_magnitude_vector"),
        ({"model.norm.weight": random(31)}, {}, r"model.norm.weight is \(31,\)"),
        ({f"{TABLE}.weight": random(70, 32)}, {}, r"embed_tokens.weight is \(70, 32\)"),
        ({f"{TABLE}.weight": random(2)}, {}, r"embed_tokens.weight is \(2,\)"),
        ({"lm_head.weight": random(70, 32)}, {}, r"lm_head.weight is \(70, 32\)"),
        ({"model.norm.weight": random(32).double()}, {}, "stored as F64"),
        ({f"{Q}.lora_B.weight": random(32, 4).double()}, {}, "stored as F64"),
        (
            {f"{TABLE}.lora_A.weight": random(4, 32), f"{TABLE}.lora_B.weight": random(64, 4)},
            {},
            "no such matrix",
        ),
        (
            {"model.norm.lora_A.weight": random(4, 1), "model.norm.lora_B.weight": random(32, 4)},
            {},
            "factors of model.norm.weight, which is no such matrix",
        ),
    ],
)
def test_what_is_not_read_is_refused_before_any_weight_is(
    base: Path, tmp_path: Path, tensors: Any, changes: Any, message: str
) -> None:
    path = write_adapter(tmp_path / "adapter", factors(Q) | tensors, **changes)
    with pytest.raises(ValueError, match=message) as told:
        resolve(path)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "cache").exists()


def cut(path: Path) -> None:
    file = path / adapters.WEIGHTS
    file.write_bytes(file.read_bytes()[:-4])


def pickled(path: Path) -> None:
    (path / adapters.WEIGHTS).rename(path / adapters.PICKLE)


def empty(path: Path) -> None:
    save_file({}, path / adapters.WEIGHTS)


def without(path: Path) -> None:
    (path / adapters.WEIGHTS).unlink()


def no_json(path: Path) -> None:
    (path / adapters.CONFIG).write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "not a whole safetensors file"),
        (pickled, "adapter_model.bin: a pickle, .*save_pretrained"),
        (empty, "holds no tensors"),
        (without, "no adapter_model.safetensors"),
        (no_json, "adapter_config.json: not JSON"),
    ],
)
def test_damaged_adapters(plain: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(plain)
    for weights in (True, False):
        with pytest.raises(ValueError, match=message):
            resolve(plain, weights=weights)


def test_factors_that_are_not_finite(base: Path, tmp_path: Path) -> None:
    tensors = factors(Q)
    tensors[f"{Q}.lora_B.weight"][0, 0] = math.nan
    with pytest.raises(ValueError, match=r"q_proj.weight holds NaN"):
        folder.load(resolve(write_adapter(tmp_path / "adapter", tensors)))


def test_a_base_in_8_bits(tmp_path: Path) -> None:
    export(make_base(tmp_path / "full"), tmp_path / "base", target="vllm", weights="fp8")
    with pytest.raises(ValueError, match=r"in 8 bits, to which no adapter can be added"):
        resolve(write_adapter(tmp_path / "adapter", factors(Q)))


def test_a_user_without_a_home(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fretsaw.checkpoint.applied.cache_folder", lambda name: None)
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME"):
        resolve(plain)


def test_one_that_is_opened_at_the_same_time(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, rename = resolve(plain), Path.rename
    kept = first.with_name("kept")
    first.rename(kept)

    def late(beside: Path, out: Path) -> Path:
        shutil.copytree(kept, out, symlinks=True)
        return rename(beside, out)

    monkeypatch.setattr(Path, "rename", late)
    assert resolve(plain) == first
    assert sorted(p.name for p in first.parent.iterdir()) == ["adapter", "kept"]


# --- PEFT as the oracle --------------------------------------------------------------------------

TABLES = ("embed_tokens", "lm_head")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "asked",
    [
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\..*": 5},
            "alpha_pattern": {"mlp.up_proj": 1.5},
        },
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "bias": "all"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", *TABLES]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": [*TABLES, "norm", "up_proj"]},
        {"target_modules": ["q_proj"], "resized": 70},
        {"target_modules": ["q_proj"], "modules_to_save": [*TABLES], "resized": 70},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")  # PEFT's own, of what it saves and merges
@torch.no_grad()
def test_logits_are_pefts(tmp_path: Path, asked: dict[str, Any], tied: bool) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is the oracle; pip install peft")
    base = make_base(tmp_path / "base", replace(CONFIG, tie_word_embeddings=tied))
    theirs = AutoModelForCausalLM.from_pretrained(base)
    asked = dict(asked)
    if resized := asked.pop("resized", None):
        theirs.resize_token_embeddings(resized)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, **asked)).eval()
    for i, weight in enumerate(p for p in theirs.parameters() if p.requires_grad):
        weight.add_(random(*weight.shape, seed=i))
    theirs.save_pretrained(tmp_path / "adapter")
    expected = theirs(IDS).logits
    opened = resolve(tmp_path / "adapter")
    ours = folder.load(opened)(IDS)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)
    export(tmp_path / "adapter", tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(exported, expected, atol=2e-5, rtol=0)
    if not (tied and set(TABLES) & set(asked["target_modules"])):
        # There PEFT adds to a matrix that both share what it trained for one.
        merged = theirs.merge_and_unload()(IDS).logits
        torch.testing.assert_close(ours, merged, atol=2e-5, rtol=0)
