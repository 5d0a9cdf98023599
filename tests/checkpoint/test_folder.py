"""Checkpoint folders: written and read back equal, and damaged ones refused by name."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder, headers
from fretsaw.checkpoint.hub import resolve
from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.model.decoder import Decoder
from fretsaw.stage.place import Refused

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
MIX = blocks_from_names(
    [("gqa1", "ffn20"), ("attn_none", "ffn_linear"), ("attn_linear", "ffn_none")]
)
IDS = torch.arange(20).view(2, 10)


def make(config: ModelConfig = CONFIG) -> Decoder:
    decoder = Decoder(config)
    decoder.init_weights(0)
    return decoder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small untied Llama on disk, to be damaged."""
    folder.save(make(), tmp_path / "model")
    return tmp_path / "model"


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("blocks", [CONFIG.blocks, MIX], ids=["llama", "decilm"])
@torch.no_grad()
def test_saved_networks_are_read_back_equal(tmp_path: Path, blocks, tied: bool) -> None:
    decoder = make(replace(CONFIG, blocks=blocks, tie_word_embeddings=tied))
    folder.save(decoder, tmp_path / "model")
    again = folder.load(tmp_path / "model")
    assert again.config == decoder.config
    assert all(p.requires_grad for p in again.parameters())
    assert again.state_dict().keys() == decoder.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in decoder.state_dict().items())
    assert torch.equal(again(IDS), decoder(IDS))
    is_decilm = (tmp_path / "model" / "modeling_decilm.py").is_file()
    assert is_decilm == (blocks is MIX)


@torch.no_grad()
def test_a_shared_checkpoint_is_rewritten_as_a_llama(model_folder: Path, tmp_path: Path) -> None:
    folder.save(folder.load(model_folder), tmp_path / "model", like=model_folder)
    assert folder.read_config(tmp_path / "model") == folder.read_config(model_folder)
    old, new = (load_file(f / headers.SINGLE) for f in (model_folder, tmp_path / "model"))
    assert old.keys() - {"lm_head.weight"} == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in new)
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = LlamaForCausalLM.from_pretrained(model_folder)
    assert torch.equal(theirs(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize(("dtype", "stored"), [("bf16", "BF16"), ("fp16", "F16"), ("fp32", "F32")])
def test_every_dtype_is_written_and_read(tmp_path: Path, dtype: str, stored: str) -> None:
    decoder = make()
    folder.save(decoder, tmp_path / "model", dtype=dtype)
    assert {entry.dtype for entry in headers.read_headers(tmp_path / "model").values()} == {stored}
    again = folder.load(tmp_path / "model")
    assert again.lm_head.weight.dtype == torch.float32
    torch.testing.assert_close(again.lm_head.weight, decoder.lm_head.weight, atol=1e-3, rtol=0)
    half = folder.load(tmp_path / "model", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_loaded_weights_do_not_hang_on_the_file(saved: Path) -> None:
    decoder = folder.load(saved)
    before = decoder.lm_head.weight.clone()
    path = saved / headers.SINGLE
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(decoder.lm_head.weight, before)


@torch.no_grad()
def test_old_buffers_and_an_equal_head_are_ignored(tmp_path: Path) -> None:
    decoder = make(replace(CONFIG, tie_word_embeddings=True))
    folder.save(decoder, tmp_path / "model")
    weights = load_file(tmp_path / "model" / headers.SINGLE)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model" / headers.SINGLE)
    assert torch.equal(folder.load(tmp_path / "model")(IDS), decoder(IDS))
    weights["lm_head.weight"][3] += 1
    save_file(weights, tmp_path / "model" / headers.SINGLE)
    with pytest.raises(ValueError, match=r"ties the embeddings, but lm_head\.weight differs"):
        folder.load(tmp_path / "model")


def test_saving_leaves_what_is_there_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(Refused, match="already there"):
        folder.save(make(), tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_configs_are_read_without_torch(model_folder: Path) -> None:
    script = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "numpy", "safetensors"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
from pathlib import Path
from fretsaw.checkpoint import folder
from fretsaw.checkpoint.decilm import config_from_json, config_to_json
import fretsaw.chat.tokenizer
config = folder.read_config(Path(sys.argv[1]))
assert config_from_json(config_to_json(config, dtype="bf16")) == config
print(config.num_hidden_layers)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(model_folder)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "5\n"


# --- damaged folders -----------------------------------------------------------------------------


def _edit_config(path: Path, **changes) -> None:
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, **changes}))


def _edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path / headers.SINGLE)
    edit(weights)
    save_file(weights, path / headers.SINGLE)


def _set(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights[name].view(-1)[:1].fill_(value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: _edit_config(p, num_hidden_layers=3),
            "layers stored: 2, in config.json: 3.*layers",
        ),
        (lambda p: _edit_config(p, num_hidden_layers=1), "layers stored: 2, in config.json: 1"),
        (
            lambda p: _edit_config(p, vocab_size=65),
            r"embed_tokens.weight is \(64, 32\), not \(65, 32\)",
        ),
        (lambda p: _edit_config(p, model_type="gpt2"), "model_type is 'gpt2'"),
        (lambda p: (p / "config.json").unlink(), "no config.json"),
        (lambda p: (p / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda p: (p / "config.json").write_text("[]"), "not a JSON object"),
        (
            lambda p: _edit_weights(p, lambda w: w.pop("model.norm.weight")),
            "model.norm.weight is missing",
        ),
        (
            lambda p: _edit_weights(
                p, lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
            ),
            "q_proj.bias is not in the config",
        ),
        (
            lambda p: _edit_weights(p, _set("model.layers.1.mlp.up_proj.weight", float("nan"))),
            "model.layers.1.mlp.up_proj.weight holds NaN",
        ),
        (
            lambda p: _edit_weights(p, _set("lm_head.weight", float("inf"))),
            "lm_head.weight holds NaN",
        ),
        (
            lambda p: _edit_weights(
                p, lambda w: w.update({"lm_head.weight": w["lm_head.weight"].to(torch.int8)})
            ),
            "lm_head.weight is stored as I8",
        ),
    ],
)
def test_damaged_folders_are_refused(saved: Path, damage, message: str) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=message):
        folder.load(saved)


def test_a_value_too_large_for_the_dtype_is_named(saved: Path) -> None:
    _edit_weights(saved, _set("lm_head.weight", 1e6))
    folder.load(saved)
    with pytest.raises(ValueError, match=r"lm_head\.weight holds NaN or infinite.*float16"):
        folder.load(saved, dtype=torch.float16)


def test_a_larger_tokenizer_is_refused(stories_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(stories_folder)
    folder.check_tokenizer(tokenizer, folder.read_config(stories_folder))
    with pytest.raises(ValueError, match="512 tokens, but the model embeds 64"):
        folder.check_tokenizer(tokenizer, CONFIG)


# --- names ---------------------------------------------------------------------------------------


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["absent", "./absent/folder", "/no/such/folder", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: no such folder"):
        resolve(name)
    with pytest.raises(ValueError, match=f"{Path(name)}: no such folder"):
        folder.read_config(Path(name))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ValueError, match="a checkpoint is a folder"):
        resolve(tmp_path / "x.gguf")


def test_a_hub_id_without_network() -> None:
    with pytest.raises(
        ValueError, match="meta-llama/Nothing: no such folder, and the Hub could not"
    ):
        resolve("meta-llama/Nothing")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, "https://huggingface.co/owner/name.*hf auth login.*HF_TOKEN"),
        (errors.RepositoryNotFoundError, "nothing public of that name"),
    ],
)
def test_what_the_hub_answers(monkeypatch: pytest.MonkeyPatch, error, message: str) -> None:
    def answer(*args, **kwargs) -> None:
        raise error.__new__(error)

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    with pytest.raises(ValueError, match=message):
        resolve("owner/name")


@pytest.mark.parametrize("read", [folder.read_config, folder.read_dtype, folder.load])
def test_a_folder_without_a_config_is_no_checkpoint(read, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json, so this is no checkpoint"):
        read(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        read(tmp_path / "nowhere")
