"""The fuse stage on a small model with two attentions removed, and what comes of it."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import stage_run, stopped_at

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.beside import read_precisions, write_precisions
from fretsaw.distill.objective import Objective, losses
from fretsaw.distill.settings import DistillSettings, TrainSettings
from fretsaw.distill.train import distill
from fretsaw.model.config import BlockConfig, Precision
from fretsaw.model.decoder import Block, Decoder
from fretsaw.pipeline.agreement import check_inputs
from fretsaw.puzzle.fuse.dependency import block_dependency
from fretsaw.puzzle.fuse.fuse import fuse
from fretsaw.puzzle.fuse.fused_times import _stack_layers
from fretsaw.puzzle.library.replay import Replay
from fretsaw.puzzle.settings import FuseSettings
from fretsaw.stage.workers import Workers
from fretsaw.training.settings import UpdateSettings

SETTINGS = FuseSettings(
    max_kl=1.0,
    repair_tokens=2048,
    tokens=2048,
    dependency_tokens=512,
    seq_len=64,
    scenario="batch=1/2,in=8,out=8,dtype=fp32,device=cpu",
    rounds=1,
)
BARE = BlockConfig(attention="none", ffn="swiglu", intermediate_size=64)


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small parent without the attention of its layers 1 to 3."""
    parent = checkpoint.load(tiny / "parent")
    blocks = (parent.config.blocks[0], *[BARE] * 3)
    config = replace(parent.config, blocks=blocks)
    layers = list(parent.model.layers)
    for i in range(1, 4):
        bare = Block(config, BARE)
        bare.load_state_dict(
            {n: w for n, w in layers[i].state_dict().items() if n in bare.state_dict()}
        )
        layers[i] = bare
    folder = tmp_path_factory.mktemp("bare")
    checkpoint.write(parent.with_blocks(config, layers), folder, like=tiny / "parent")
    return folder


@pytest.fixture(scope="module")
def inputs(tiny: Path, model: Path) -> dict[str, Path]:
    return {"model": model, "corpus": tiny / "corpus"}


def run_fuse(inputs: dict[str, Path], out: Path, settings: FuseSettings = SETTINGS) -> dict:
    """Run the stage; return its fusion.json."""
    fuse(settings, inputs, stage_run(out))
    return json.loads((out / "fusion.json").read_text())


@pytest.fixture(scope="module")
def fused(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four FFNs in one."""
    out = tmp_path_factory.mktemp("fused") / "out"
    run_fuse(inputs, out, replace(SETTINGS, groups=("0-3",)))
    return out


def kl_between(before: Decoder, after: Decoder, corpus: Path) -> float:
    """Return KL(before || after) on the stage's text, by two plain forwards."""
    import numpy as np

    tokens = torch.from_numpy(np.load(corpus / "heldout.npy")[: 32 * 64 + 1].astype(np.int64))
    windows = tokens[: 32 * 64].view(32, 64)
    with torch.inference_mode():
        p, q = (model(windows).log_softmax(-1) for model in (before, after))
    return (p.exp() * (p - q)).sum(-1).mean().item()


def test_every_group_is_scored_and_the_choice_holds_its_budget(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    found = run_fuse(inputs, tmp_path / "out")
    assert [row["group"] for row in found["groups"]] == ["0-1", "0-2", "0-3", "1-2", "1-3", "2-3"]
    assert found["runs"] == [[0, 1, 2, 3]]
    assert all(row["kl"] > 0 and row["stderr"] > 0 for row in found["groups"])
    assert all(row["repair"]["kl_after"] <= row["repair"]["kl_before"] for row in found["groups"])
    sums = [one["kl_sum"] for one in found["front"]]
    assert sums == sorted(sums)
    assert found["chosen"]["kl"] <= SETTINGS.max_kl
    matrix = json.loads((tmp_path / "out/dependency.json").read_text())["matrix"]
    assert [[v is not None for v in row] for row in matrix] == [
        [j > i for j in range(4)] for i in range(4)
    ]


def test_what_is_written_is_what_was_measured(inputs: dict[str, Path], fused: Path) -> None:
    found = json.loads((fused / "fusion.json").read_text())
    before, after = checkpoint.load(inputs["model"]), checkpoint.load(fused)
    assert after.config.num_hidden_layers == 1
    assert after.config.blocks[0] == replace(before.config.blocks[0], intermediate_size=256)
    measured = kl_between(before, after, inputs["corpus"])
    assert found["chosen"]["kl"] == pytest.approx(measured, rel=1e-3)
    assert found["groups"][0]["kl"] == pytest.approx(measured, rel=1e-3)  # the only change there is
    assert json.loads((fused / "layers.json").read_text()) == {"of": 4, "after": [3]}


def test_repair_nears_what_the_ffns_gave_in_a_row(
    inputs: dict[str, Path], fused: Path, tmp_path: Path
) -> None:
    plain = run_fuse(
        inputs, tmp_path / "plain", replace(SETTINGS, groups=("0-3",), repair_tokens=0)
    )
    repaired = json.loads((fused / "fusion.json").read_text())
    assert plain["chosen"]["repairs"] == [None]
    assert repaired["chosen"]["kl"] < plain["chosen"]["kl"]


def test_kept_layers_change_nothing_but_the_number(
    inputs: dict[str, Path], tmp_path: Path, fused: Path
) -> None:
    run_fuse(inputs, tmp_path / "kept", replace(SETTINGS, groups=("0-3",), keep_layers=True))
    kept = checkpoint.load(tmp_path / "kept")
    assert kept.config.num_hidden_layers == 4
    assert [block.ffn for block in kept.config.blocks] == ["swiglu", "none", "none", "none"]
    token_ids = torch.arange(24).view(2, 12)
    with torch.inference_mode():
        assert torch.equal(kept(token_ids), checkpoint.load(fused)(token_ids))
    assert json.loads((tmp_path / "kept/layers.json").read_text()) == {"of": 4, "after": [3] * 4}


def test_a_budget_of_nothing_fuses_nothing(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = run_fuse(inputs, tmp_path / "out", replace(SETTINGS, max_kl=0.0))
    assert found["chosen"]["groups"] == []
    assert found["chosen"]["kl"] == 0
    assert checkpoint.load(tmp_path / "out").config.num_hidden_layers == 4


def test_where_nothing_can_be_fused_the_model_is_as_it_was(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_fuse({"model": tiny / "parent", "corpus": tiny / "corpus"}, tmp_path / "out")
    assert found["chosen"]["groups"] == found["groups"] == []
    assert "nothing is fused; no two FFNs follow each other" in capsys.readouterr().err
    before, after = (checkpoint.load(f) for f in (tiny / "parent", tmp_path / "out"))
    assert before.config == after.config
    token_ids = torch.arange(24).view(2, 12)
    with torch.inference_mode():
        assert torch.equal(before(token_ids), after(token_ids))


def test_workers_give_the_same_groups(inputs: dict[str, Path], tmp_path: Path) -> None:
    alone = run_fuse(inputs, tmp_path / "alone")
    run = stage_run(tmp_path / "two", workers=Workers(workers=2))
    fuse(SETTINGS, inputs, run)
    together = json.loads((tmp_path / "two/fusion.json").read_text())
    for one, other in zip(alone["groups"], together["groups"], strict=True):
        assert {**one, "saved": None} == {**other, "saved": None}


def test_a_child_for_8_bits_is_timed_and_written_as_it_is_served(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    model = shutil.copytree(inputs["model"], tmp_path / "model")
    blocks = checkpoint.read_config(model).blocks
    in_8_bits: list[Precision] = ["int8", "int8", "fp8", "int8"]
    served = [block.stored("full", ffn) for block, ffn in zip(blocks, in_8_bits, strict=True)]
    write_precisions(model, served)
    given = inputs | {"model": model}
    for group, expected in (("0-1", ["int8", "fp8", "int8"]), ("1-2", ["int8", "full", "int8"])):
        out = tmp_path / group
        found = run_fuse(given, out, replace(SETTINGS, groups=(group,)))
        written = read_precisions(out)
        assert written is not None
        assert [ffn for _, ffn in written] == expected
        assert checkpoint.load(out).config.blocks[0].ffn_precision == "full"  # to be healed
        assert found["times"].keys() == found["foretold"].keys()
    timed = (tmp_path / "1-2/resume/widths.jsonl").read_text()
    assert set(re.findall(r"ffn[\w@]+", timed)) == {"ffn128", "ffn64@fp8", "ffn64@int8"}


def test_a_stopped_run_goes_on(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped_at(3, stage_run(out), lambda run: fuse(SETTINGS, inputs, run))
    done = (out / "resume/groups.jsonl").read_text().splitlines()
    assert 2 <= len(done) < 6
    found = run_fuse(inputs, out)
    assert (out / "resume/groups.jsonl").read_text().splitlines()[: len(done)] == done
    assert len(found["groups"]) == 6


# --- healing --------------------------------------------------------------------------------------


def test_a_fused_child_is_healed_layer_by_layer(
    tiny: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, groups=("1-2",))
    run_fuse(inputs, tmp_path / "fused", settings)
    healing = DistillSettings(
        train=TrainSettings(
            tokens=2048, batch_tokens=512, micro_batch_tokens=512, seq_len=64, heldout_tokens=512,
            update=UpdateSettings(learning_rate=1e-3),
        )
    )  # fmt: skip
    given = {"child": tmp_path / "fused", "parent": inputs["model"], "corpus": tiny / "corpus"}
    check_inputs("distill", healing, given)
    distill(healing, given, stage_run(tmp_path / "healed"))
    rows = [
        json.loads(line) for line in (tmp_path / "healed/metrics.jsonl").read_text().splitlines()
    ]
    assert all(row["cosine"] > 0 for row in rows if "cosine" in row)
    assert (tmp_path / "healed/layers.json").read_text() == (
        tmp_path / "fused/layers.json"
    ).read_text()
    with pytest.raises(ValueError, match=r"num_hidden_layers 3, but that of .* is 1"):
        check_inputs("distill", healing, {**given, "parent": _one_layer(inputs["model"], tmp_path)})
    alike = {**given, "parent": tmp_path / "fused"}  # of the same depth: one for one
    check_inputs("distill", healing, alike)
    distill(healing, alike, stage_run(tmp_path / "alike"))
    assert not (tmp_path / "alike/layers.json").exists()
    first = json.loads((tmp_path / "alike/metrics.jsonl").read_text().splitlines()[0])
    assert first["cosine"] == pytest.approx(0.0, abs=1e-4)


def test_each_layer_is_paired_with_the_one_it_stands_for(model: Path) -> None:
    decoder = checkpoint.load(model)
    shallow = decoder.with_blocks(
        replace(decoder.config, blocks=(decoder.config.blocks[0], BARE)),
        [decoder.model.layers[0], decoder.model.layers[1]],
    )
    window = torch.arange(26).view(2, 13)
    apart = {}
    for layers in ((0, 1), (0, 3)):
        _, terms = losses(shallow, decoder, window, Objective(1.0, 1.0, 0.0, layers), "fp32")
        apart[layers] = terms["cosine"].item()
    assert apart[0, 1] == pytest.approx(0.0, abs=1e-4)
    assert apart[0, 3] > 1e-3


def _one_layer(model: Path, tmp_path: Path) -> Path:
    decoder = checkpoint.load(model)
    config = replace(decoder.config, blocks=decoder.config.blocks[:1])
    folder = tmp_path / "one"
    folder.mkdir()
    checkpoint.write(decoder.with_blocks(config, [decoder.model.layers[0]]), folder, like=model)
    return folder


# --- dependency -----------------------------------------------------------------------------------


def test_the_dependency_matrix_by_hand(model: Path) -> None:
    decoder = checkpoint.load(model)
    token_ids = torch.arange(36).view(3, 12)
    with torch.inference_mode():
        matrix = block_dependency(decoder, token_ids, batch_rows=2)
        context = decoder.context(1, 12)
        layers = decoder.model.layers
        x = layers[0](decoder.model.embed_tokens(token_ids), context)
        after_1 = layers[1](x, context)
        after_2 = layers[2](after_1, context)
        without_1 = layers[2](x, context)
        wanted = 1 - torch.cosine_similarity(after_2 - after_1, without_1 - x, dim=-1)
    assert matrix[1, 2].item() == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert torch.isnan(matrix[2, 1])
    assert torch.isnan(matrix[1, 1])


def test_replay_of_a_shallower_model(model: Path, fused: Path, tiny: Path) -> None:
    decoder = checkpoint.load(model)
    windows = torch.arange(65).repeat(2, 1)
    with torch.inference_mode():
        kl = Replay(decoder, windows, 1).figures_of(checkpoint.load(fused)).kl
        p, q = (m(windows[:, :-1]).log_softmax(-1) for m in (decoder, checkpoint.load(fused)))
    torch.testing.assert_close(kl, (p.exp() * (p - q)).sum(-1).mean(-1), rtol=1e-4, atol=1e-6)


# --- times and targets ----------------------------------------------------------------------------


def test_stacks_are_as_deep_as_memory_allows(model: Path) -> None:
    config = checkpoint.read_config(model)
    outside = 3 * 4 * config.vocab_size * config.hidden_size
    layer = 4 * (3 * 256 * config.hidden_size + config.hidden_size)  # bytes, the norm's too

    def layers(free: float) -> int:
        return _stack_layers(config, ["ffn64@int8", "ffn256"], "fp32", free)

    assert layers(1e12) == 4
    assert layers(outside + 3 * 4 * layer) == 2  # twice as many in a third of what is free
    with pytest.raises(ValueError, match=r"two layers of ffn256 takes 0\.0 GiB.*set max_width"):
        layers(outside + 5 * layer)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("60% memory", "fusing saves time"),
        ("100x decode", "out of reach; fusing reaches"),
        ("fast", "is not understood"),
        ("1.1x decode @ batch=8", "names no scenario that is measured"),
    ],
)
def test_targets(inputs: dict[str, Path], tmp_path: Path, target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_fuse(inputs, tmp_path / "out", replace(SETTINGS, target=target))


def measured_by_hand(monkeypatch: pytest.MonkeyPatch, drift: float = 1.0) -> list[str]:
    """Time models by a formula instead: 1 ms, 2 an attention, 0.5 an FFN and 0.01 a channel.

    The machine gets slower by a factor with every model that is opened. Returns what was opened.
    """
    opened: list[str] = []

    @contextlib.contextmanager
    def open_by_hand(self, name: str, blocks):
        opened.append(name)
        ms = 1.0 + sum(
            2.0 * (block.attention == "gqa") + 0.5 + 0.01 * block.intermediate_size
            for block in blocks
            if block.ffn == "swiglu"
        )
        now = ms * drift ** len(opened)
        yield lambda scenario, number: {"prefill_ms": 3 * now, "decode_ms": now}

    monkeypatch.setattr("fretsaw.puzzle.costs.engine_times.EngineTimes.open", open_by_hand)
    return opened


def test_savings_and_what_is_foretold(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_by_hand(monkeypatch)
    found = run_fuse(inputs, tmp_path / "out", replace(SETTINGS, target="1.2x decode"))
    at = SETTINGS.scenario.replace("1/2", "1")
    saved = {row["group"]: row["saved"][at]["decode_ms"] for row in found["groups"]}
    whole = {"0-1": 0.5, "0-2": 1.0, "0-3": 1.5, "1-2": 0.5, "1-3": 1.0, "2-3": 0.5}
    assert saved == pytest.approx(whole, abs=1e-6)
    for row in found["foretold"].values():
        assert row["error"] == pytest.approx({"prefill_ms": 0.0, "decode_ms": 0.0}, abs=1e-6)
    # 7.56 ms before, so 1.26 must be saved: all four in one is the only way to that
    assert found["chosen"]["groups"] == ["0-3"]
    assert found["times"][at]["decode_ms"]["speedup"] == pytest.approx(7.56 / 6.06)


def test_a_target_may_name_its_scenario(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_by_hand(monkeypatch)
    settings = replace(SETTINGS, target="1.05x decode @ batch=2")
    found = run_fuse(inputs, tmp_path / "out", settings)
    assert found["saving_of"] == f"decode_ms at {SETTINGS.scenario.replace('1/2', '2')}"


def test_before_and_after_are_measured_in_turn(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = measured_by_hand(monkeypatch, drift=1.03)
    found = run_fuse(inputs, tmp_path / "out", replace(SETTINGS, groups=("0-3",), rounds=3))
    assert opened[-6:] == ["before", "after"] * 3
    for row in found["times"].values():
        assert row["decode_ms"]["speedup"] == pytest.approx(7.56 / 6.06 / 1.03)


def test_settings_that_contradict() -> None:
    with pytest.raises(ValueError, match="one of them"):
        FuseSettings(target="1.1x decode", groups=("1-2",))
    with pytest.raises(ValueError, match="one of them"):
        FuseSettings(target="1.1x decode", rule="paper")
    with pytest.raises(ValueError, match="0 or more"):
        FuseSettings(max_kl=-1.0)
