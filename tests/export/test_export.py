"""Exports: written for a target, opened by others, checked first, refused in one sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf as container
import pytest
import torch
from checkpoint.test_gguf import TEXT
from patterns import LINEAR, PATTERNS, ids_of, make
from support import prompt_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

import fretsaw.export.export
from fretsaw.chat.control_tokens import add_control_tokens
from fretsaw.chat.message import Message
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder
from fretsaw.checkpoint.headers import read_headers
from fretsaw.cli import main
from fretsaw.export import asked
from fretsaw.export.export import export
from fretsaw.export.portable import rewrite
from fretsaw.model.config import RopeScaling
from fretsaw.scenario.processor import NO_INT8

ATTENTION_KEYS = {
    *("n_heads_in_group", "no_op", "replace_with_linear", "sparsify", "window_length"),
    *("num_sink_tokens", "use_prefill_window_in_sink_attention", "unshifted_sink"),
}
FFN_KEYS = {"ffn_mult", "no_op", "replace_with_linear", "sparsify"}
SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train([TEXT] * 3, 290).save(out)
    return out


@pytest.fixture
def source(tokenizer: Path, tmp_path: Path) -> Any:
    """Make a checkpoint of a pattern, tokenizer and all."""

    def save(pattern: str, **changes) -> Path:
        decoder = make(PATTERNS[pattern], vocab_size=300, **changes)
        folder.save(decoder, tmp_path / "source", like=tokenizer)
        return tmp_path / "source"

    return save


def opened(path: Path):
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path, trust_remote_code=True, output_loading_info=True, dtype=torch.float32
    )
    model, info = loaded
    assert not any(info.values()), info
    return model.eval()


def config_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


# --- the rules by which other loaders read config.json --------------------------------------------


def width_of(ffn: dict[str, Any], hidden: int) -> int:
    if "ffn_mult" not in ffn:  # only vLLM looks further
        return ffn["intermediate_size"]
    assert isinstance(ffn["ffn_mult"], float)
    width = int(2 * ffn["ffn_mult"] * hidden / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


def read_strictly(raw: dict[str, Any]) -> list[tuple[int, int]]:
    """Read as mlx-lm and llama.cpp's converter do together; return (kv heads, width) a layer."""
    layers = []
    assert len(raw["block_configs"]) == raw["num_hidden_layers"]
    for block in raw["block_configs"]:
        attention, ffn = block["attention"], block["ffn"]
        assert set(attention) == ATTENTION_KEYS  # one too few: KeyError; too many: TypeError
        assert set(ffn) == FFN_KEYS
        for part, size in ((attention, "n_heads_in_group"), (ffn, "ffn_mult")):
            assert not (part["no_op"] and part["replace_with_linear"])
            assert (part[size] is None) == (part["no_op"] or part["replace_with_linear"])
        group = attention["n_heads_in_group"]
        kv_heads = raw["num_attention_heads"] // group if group else 0
        width = width_of(ffn, raw["hidden_size"]) if ffn["ffn_mult"] is not None else 0
        layers.append((kv_heads, width))
    return layers


def expected_layers(path: Path) -> list[tuple[int, int]]:
    blocks = folder.read_config(path).blocks
    return [(block.num_key_value_heads, block.intermediate_size) for block in blocks]


def check_shared_keys(raw: dict[str, Any], path: Path) -> None:
    """What every loader needs whatever the layers are."""
    assert raw["rope_theta"] == 10000.0  # mlx-lm takes defaults without a word otherwise
    assert "rope_parameters" not in raw
    assert raw["rope_scaling"] is None
    assert (raw["attention_bias"], raw["mlp_bias"], raw["hidden_act"]) == (False, False, "silu")
    if raw["model_type"] == "nemotron-nas":
        assert raw["architectures"] == ["DeciLMForCausalLM"]
        for name in raw["auto_map"].values():
            assert (path / f"{name.split('.')[0]}.py").is_file()


# --- what others open -----------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name not in LINEAR])
@torch.no_grad()
def test_portable_opens_in_transformers_and_reads_everywhere(
    pattern: str, source, tmp_path: Path
) -> None:
    original = folder.load(source(pattern))
    exported = export(tmp_path / "source", tmp_path / "out")
    assert exported.max_difference < 1e-5
    ids = ids_of(2, 20)
    model = opened(tmp_path / "out")
    torch.testing.assert_close(model(ids).logits, original(ids), atol=1e-4, rtol=0)
    raw = config_of(tmp_path / "out")
    check_shared_keys(raw, tmp_path / "out")
    if raw["model_type"] == "llama":
        assert folder.read_config(tmp_path / "out").is_homogeneous
        return
    layers = read_strictly(raw)
    assert layers == expected_layers(tmp_path / "out")
    assert layers[0][0] > 0  # vLLM crashes, llama.cpp and Megatron refuse
    assert all(width for _, width in layers)  # llama.cpp: silently wrong, or an abort
    assert all(b["ffn"]["ffn_mult"] * 128 * 2 / 3 % 256 == 0 for b in raw["block_configs"])


@pytest.mark.parametrize("pattern", ["any_widths", "no_ops", "attn_none_first"])
@torch.no_grad()
def test_vllms_own_export_keeps_widths(pattern: str, source, tmp_path: Path) -> None:
    original = folder.load(source(pattern))
    export(tmp_path / "source", tmp_path / "out", target="vllm")
    raw = config_of(tmp_path / "out")
    widths = [
        width_of(block["ffn"], 128) if not block["ffn"]["no_op"] else 0
        for block in raw["block_configs"]
    ]
    assert widths == [width for _, width in expected_layers(tmp_path / "out")]
    assert {w for w in widths if w} == {b.intermediate_size for b in original.config.blocks} - {0}
    assert not raw["block_configs"][0]["attention"]["no_op"]
    ids = ids_of(2, 20)
    assert torch.equal(folder.load(tmp_path / "out")(ids), original(ids))


@pytest.mark.parametrize("pattern", ["any_widths", "no_ops", "attn_none_first"])
def test_mlx_reads_nvidias_dialect_only(pattern: str, source, tmp_path: Path) -> None:
    export(source(pattern), tmp_path / "out", target="mlx")
    assert read_strictly(config_of(tmp_path / "out")) == expected_layers(tmp_path / "out")


@pytest.mark.parametrize("target", ["transformers", "nvidia"])
@pytest.mark.parametrize("pattern", ["uniform", "mix", "fused"])
@torch.no_grad()
def test_the_true_layout(pattern: str, target: str, source, tmp_path: Path) -> None:
    original = folder.load(source(pattern))
    exported = export(tmp_path / "source", tmp_path / "out", target=target)
    assert exported.notes == ()
    assert folder.read_config(tmp_path / "out") == original.config
    raw = config_of(tmp_path / "out")
    check_shared_keys(raw, tmp_path / "out")
    is_llama = pattern == "uniform" and target == "transformers"
    assert raw["model_type"] == ("llama" if is_llama else "nemotron-nas")
    if target == "nvidia":
        assert read_strictly(raw) == expected_layers(tmp_path / "out")
    ids = ids_of(2, 20)
    torch.testing.assert_close(
        opened(tmp_path / "out")(ids).logits, original(ids), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_a_uniform_network_is_a_plain_llama(source, tmp_path: Path) -> None:
    export(source("uniform"), tmp_path / "out")
    assert config_of(tmp_path / "out")["architectures"] == ["LlamaForCausalLM"]
    assert not (tmp_path / "out" / "modeling_decilm.py").exists()
    export(tmp_path / "source", tmp_path / "out.gguf")
    reader = container.GGUFReader(tmp_path / "out.gguf")
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    assert architecture.contents() == "llama"


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_rope_scaling_is_spelled_as_all_read_it(tied: bool, source, tmp_path: Path) -> None:
    changes = {"rope_scaling": SCALING, "rope_theta": 3000.0, "tie_word_embeddings": tied}
    original = folder.load(source("no_ops", **changes))
    export(tmp_path / "source", tmp_path / "out")
    raw = config_of(tmp_path / "out")
    assert raw["rope_theta"] == 3000.0
    assert raw["rope_scaling"]["rope_type"] == "llama3"
    assert raw["rope_scaling"]["factor"] == 8.0
    assert "rope_parameters" not in raw
    assert ("lm_head.weight" in read_headers(tmp_path / "out")) is not tied
    ids = ids_of(2, 100)
    model = opened(tmp_path / "out")
    torch.testing.assert_close(model(ids).logits, original(ids), atol=1e-4, rtol=0)
    assert export(tmp_path / "source", tmp_path / "out.gguf").max_difference < 1e-5


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "q8_0"])
@pytest.mark.parametrize("form", ["decilm", "gguf"])
def test_every_precision(dtype: str, form: str, source, tmp_path: Path) -> None:
    out = tmp_path / ("out.gguf" if form == "gguf" else "out")
    if (form, dtype) == ("decilm", "q8_0"):
        with pytest.raises(ValueError, match=r"--dtype q8_0: .*--format gguf"):
            export(source("no_ops"), out, dtype=dtype)
        return
    exported = export(source("no_ops"), out, dtype=dtype)
    assert (exported.dtype, exported.format) == (dtype, form)
    assert exported.max_difference < 1e-5  # the source's weights are rounded likewise
    full = export(tmp_path / "source", out.with_name(f"full-{out.name}"), dtype="fp32")
    ratio = {"fp32": 1.0, "bf16": 0.5, "fp16": 0.5, "q8_0": 34 / 128}[dtype]
    assert exported.num_bytes == pytest.approx(ratio * full.num_bytes, rel=0.1)


def test_auto_is_the_sources_own_precision(source, tmp_path: Path) -> None:
    decoder = make(PATTERNS["uniform"], vocab_size=300)
    folder.save(decoder, tmp_path / "half", dtype="bf16")
    assert export(tmp_path / "half", tmp_path / "out").dtype == "bf16"
    assert config_of(tmp_path / "out")["torch_dtype"] == "bfloat16"


# --- what goes along ------------------------------------------------------------------------------


TEMPLATE = "{% if enable_thinking is defined %}{{ messages[0].content }}{% endif %}"


def test_tokenizer_and_chat_template_go_along(source, tmp_path: Path) -> None:
    path = source("no_ops")
    own = json.loads((path / "tokenizer_config.json").read_text())
    own["reasoning_toggle"] = "v1"
    (path / "tokenizer_config.json").write_text(json.dumps(own))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    exported = export(path, tmp_path / "out")
    for name in folder.TOKENIZER_FILES:
        if (path / name).is_file():
            assert (tmp_path / "out" / name).read_bytes() == (path / name).read_bytes(), name
    assert not any("template" in note for note in exported.notes)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    messages = [{"role": "user", "content": "hello"}]
    text = theirs.apply_chat_template(messages, tokenize=False, enable_thinking=False)
    assert text == "hello"
    assert theirs.encode(TEXT, add_special_tokens=False) == Tokenizer.from_folder(path).encode(TEXT)
    export(path, tmp_path / "out.gguf")
    field = container.GGUFReader(tmp_path / "out.gguf").get_field("tokenizer.chat_template")
    assert field is not None
    assert field.contents() == TEMPLATE


def test_a_template_without_enable_thinking_is_pointed_out(source, tmp_path: Path) -> None:
    path = source("uniform")
    assert export(path, tmp_path / "plain").notes == ()  # no chat model, so nothing is missed
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert export(path, tmp_path / "chat").notes == ()  # it does not reason
    own = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**own, "reasoning_toggle": "v1"}))
    assert "does not know enable_thinking" in export(path, tmp_path / "a").notes[0]
    assert export(path, tmp_path / "a.gguf").notes == ()  # the parsers are vLLM's


def test_a_dry_run_says_what_would_be_written(capsys, source, tmp_path: Path) -> None:
    path = str(source("uniform"))
    assert main(["export", path, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would export" in said
    assert "nothing was written" in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert main(["export", path, "--out", str(tmp_path / "out"), "--dry-run"]) == 2


def test_exported_files_are_for_whom_the_umask_lets(source, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    wanted = (tmp_path / "plain").stat().st_mode
    path = source("uniform")
    export(path, tmp_path / "out")
    assert {file.stat().st_mode for file in (tmp_path / "out").iterdir()} == {wanted}
    export(path, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").stat().st_mode == wanted


def test_a_chat_checkpoint_without_a_template_is_given_its_own(source, tmp_path: Path) -> None:
    path = source("uniform")
    tokenizer = Tokenizer.from_folder(path)
    add_control_tokens(tokenizer)
    tokenizer.save(path)
    exported = export(path, tmp_path / "out")
    assert exported.notes == (
        "the source has no chat template; the format's own is added, with toggle v1",
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "hello"}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tuple(ids) == prompt_ids(tokenizer, [Message("user", "hello")], "on")
    ids = theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, enable_thinking=False
    )
    assert tuple(ids) == prompt_ids(tokenizer, [Message("user", "hello")], "off")
    assert not (path / "chat_template.jinja").exists()  # the source is left as it is
    export(path, tmp_path / "out.gguf")
    field = container.GGUFReader(tmp_path / "out.gguf").get_field("tokenizer.chat_template")
    assert field is not None
    assert field.contents() == (tmp_path / "out" / "chat_template.jinja").read_text()


# --- the check ------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_an_export_that_computes_something_else_is_not_kept(
    out: str, source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source("no_ops")

    def spoiled(decoder, target, **options):
        result, notes = rewrite(decoder, target, **options)
        block: Any = result.model.layers[2]
        block.mlp.up_proj.weight = torch.nn.Parameter(-block.mlp.up_proj.weight)
        return result, notes

    monkeypatch.setattr(fretsaw.export.export, "rewrite", spoiled)
    with pytest.raises(RuntimeError, match="logits differ from the source's by"):
        export(path, tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
    (tmp_path / "empty").mkdir()
    if out == "out":
        with pytest.raises(RuntimeError):
            export(path, tmp_path / "empty")
        assert list((tmp_path / "empty").iterdir()) == []


# --- bad input ------------------------------------------------------------------------------------


def refuse(capsys: pytest.CaptureFixture, out: Path, arguments: list[str], *parts: str) -> None:
    there = sorted(p.name for p in out.parent.iterdir())
    assert main(["export", *arguments, "--out", str(out)]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("fretsaw: ")
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    assert sorted(p.name for p in out.parent.iterdir()) == there


def test_what_does_not_go_together(capsys, source, tmp_path: Path) -> None:
    path, out, file = str(source("mix")), tmp_path / "out", tmp_path / "out.gguf"
    refuse(capsys, out, [path, "--target", "tgi"], "'tgi'", "portable, vllm, llama.cpp")
    refuse(capsys, out, [path, "--format", "onnx"], "'onnx'", "decilm or gguf")
    refuse(capsys, out, [path, "--dtype", "int4"], "--dtype int4", "fp32, bf16, fp16")
    wrong = [path, "--target", "vllm", "--format", "gguf"]
    refuse(capsys, out, wrong, "vllm reads decilm only", "leave --format out")
    refuse(capsys, out, [path, "--target", "llama.cpp", "--format", "decilm"], "reads gguf only")
    refuse(capsys, out, [path, "--target", "llama.cpp"], "--out NAME.gguf")
    refuse(capsys, file, [path, "--target", "mlx"], "a folder")
    refuse(capsys, out, [path], "layer 1: its FFN is linear", "--target llama.cpp")
    refuse(capsys, out, [path, "--target", "mlx"], "layer 1: its FFN is linear")
    refuse(capsys, out, [str(tmp_path / "nothing")], "no such folder")
    refuse(capsys, out, [path, "--target", "transformers", "--dtype", "q8_0"], "--format gguf")


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_what_is_there_is_left_alone(name: str, capsys, source, tmp_path: Path) -> None:
    path, out = str(source("uniform")), tmp_path / name
    if name == "out":
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
    else:
        out.write_text("years of work")
    refuse(capsys, out, [path], "already there")
    kept = out if out.is_file() else out / "thesis.txt"
    assert kept.read_text() == "years of work"


def test_a_tokenizer_that_llama_cpp_does_not_know(capsys, source, tmp_path: Path) -> None:
    path, out = source("uniform"), tmp_path / "out.gguf"
    raw = json.loads((path / "tokenizer.json").read_text())
    raw["pre_tokenizer"] = {"type": "Whitespace"}
    (path / "tokenizer.json").write_text(json.dumps(raw))
    refuse(capsys, out, [str(path)], "llama.cpp has no tokenizer", "--format decilm")
    (path / "tokenizer.json").unlink()
    refuse(capsys, out, [str(path)], "no tokenizer.json")
    assert export(path, tmp_path / "out").notes == ()  # a folder needs none


def test_rows_that_q8_0_cannot_cut(capsys, tokenizer: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 72, "num_attention_heads": 9, "head_dim": 8, "vocab_size": 300}
    folder.save(make([("gqa3", "ffn64")], **shape), tmp_path / "source", like=tokenizer)
    wrong = [str(tmp_path / "source"), "--dtype", "q8_0"]
    refuse(capsys, tmp_path / "out.gguf", wrong, "hidden_size is 72", "--dtype fp16")


def test_weights_that_fp16_cannot_hold(capsys, source, tmp_path: Path) -> None:
    path = source("uniform")
    decoder = folder.load(path)
    with torch.no_grad():
        decoder.lm_head.weight[0, 0] = 1e5
    shutil.rmtree(path)
    folder.save(decoder, path)
    wrong = [str(path), "--dtype", "fp16"]
    refuse(capsys, tmp_path / "out", wrong, "lm_head.weight reaches 1e+05", "--dtype bf16")


def test_the_command_says_what_it_did(capsys, source, tmp_path: Path) -> None:
    assert main(["export", str(source("no_ops")), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'out'}: decilm in fp32")
    assert "layers 1, 4 given an FFN of zeros, 256 wide" in lines[3]
    assert "reopened: logits within" in lines[-1]


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_what_a_killed_export_left_is_cleared_by_the_next(name: str, source, tmp_path) -> None:
    half = tmp_path / f".{name}.77.tmp"
    half.mkdir()
    (half / ".tmpAb3dE9").write_bytes(bytes(9))
    (tmp_path / f".{name}.78.tmp").touch()
    (tmp_path / ".other.77.tmp").mkdir()
    path = source("no_ops")
    before = {one.name for one in tmp_path.iterdir()} - {half.name, f".{name}.78.tmp"}
    assert main(["export", str(path), "--out", str(tmp_path / name)]) == 0
    assert {one.name for one in tmp_path.iterdir()} == before | {name}


# --- weights in 8 bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["fp8", "int8"])
@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p not in LINEAR])
def test_weights_in_8_bits_compute_what_the_source_does_so_rounded(
    pattern: str, weights: Any, source: Any, tmp_path: Path
) -> None:
    path = source(pattern)
    exported = export(path, tmp_path / "out", weights=weights)
    assert exported.target.name == "vllm"
    assert exported.in_8_bits == (weights,)
    assert exported.max_difference == 0
    served, expected = folder.load_served(exported.out), folder.load_served(path, weights=weights)
    with torch.no_grad():
        assert torch.equal(served(ids_of(2, 20)), expected(ids_of(2, 20)))
    assert config_of(exported.out)["quantization_config"]["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize("is_able", [True, False])
def test_int8_that_this_processor_does_not_multiply_is_said(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_able: bool
) -> None:
    monkeypatch.setattr(asked, "multiplies_int8", lambda: is_able)
    path = source("uniform")
    for weights in ("int8", "fp8", "full"):
        exported = export(path, tmp_path / weights, weights=weights)
        is_said = weights == "int8" and not is_able
        assert (NO_INT8 in exported.notes) == is_said
        foreseen = asked.settle(path, tmp_path / "other", weights=weights).render()
        assert (NO_INT8 in foreseen) == is_said


def test_what_8_bits_can_not_be_is_said(source: Any, tmp_path: Path) -> None:
    path = source("uniform")
    with pytest.raises(ValueError, match="mlx does not read compressed-tensors; export it with"):
        export(path, tmp_path / "out", weights="fp8", target="mlx")
    with pytest.raises(ValueError, match="a GGUF file has formats of its own; choose --dtype q8_0"):
        export(path, tmp_path / "out.gguf", weights="fp8")
    eight = export(path, tmp_path / "eight", weights="int8").out
    with pytest.raises(ValueError, match="give the checkpoint that it was exported from"):
        export(eight, tmp_path / "again")
    assert "int8 and fp32" in export(path, tmp_path / "other", weights="int8").render()
