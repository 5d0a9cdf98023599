"""Block distillation: errors fall, the best is kept, layers are independent, a run goes on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import stage_run, stopped_at

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.model.decoder import Block, Decoder
from fretsaw.puzzle.bld.bld import bld
from fretsaw.puzzle.bld.candidates import decoupled
from fretsaw.puzzle.bld.distillation import block_error, distill_layer, drawn, states_of
from fretsaw.puzzle.bld.layer_files import read_trained
from fretsaw.puzzle.bld.states import Text, Walk
from fretsaw.puzzle.children.assemble import assemble
from fretsaw.puzzle.library.ranking import read_orders
from fretsaw.puzzle.library.slices import alternative, sort_parent
from fretsaw.puzzle.settings import AssembleSettings, BldSettings, SpaceSettings
from fretsaw.stage.whole import write_json
from fretsaw.stage.workers import Workers
from fretsaw.training.settings import UpdateSettings

SMALL = BldSettings(
    space=SpaceSettings(ffn_percents=(50, 25)),
    tokens=8192,
    batch_tokens=512,
    seq_len=64,
    repair_tokens=2048,
    heldout_tokens=2048,
    update=UpdateSettings(learning_rate=3e-3, weight_decay=0.0),
)


def inputs_of(tiny: Path) -> dict[str, Path]:
    return {name: tiny / name for name in ("parent", "corpus", "ranking")}


@pytest.fixture
def parent(tiny: Path) -> Decoder:
    parent = checkpoint.load(tiny / "parent").requires_grad_(False)
    sort_parent(parent, read_orders(tiny / "ranking", 4))
    return parent


def text_of(parent: Decoder, tiny: Path, settings: BldSettings = SMALL) -> Text:
    return Text(parent, tiny / "corpus", settings, seed=0)


def test_errors_fall_and_what_is_stored_has_the_error_reported(
    tiny: Path, tmp_path: Path, parent: Decoder
) -> None:
    metrics = bld(SMALL, inputs_of(tiny), stage_run(tmp_path))
    layers = json.loads((tmp_path / "bld.json").read_text())["layers"]
    text = text_of(parent, tiny)
    rows = [row for layer in layers for scope in layer.values() for row in scope.values()]
    assert metrics["alternatives"] == len(rows) == 4 * 6
    assert metrics["improved"] > len(rows) / 2
    assert sum(row["repaired"] < row["plain"] for row in rows) > len(rows) / 2
    assert sum(row["refitted"] < row["repaired"] for row in rows) > len(rows) / 2

    for i, layer in enumerate(layers):
        trained = read_trained(tmp_path, i)
        block = parent.model.layers[i]
        assert isinstance(block, Block)
        states = states_of(block, text.heldout.before(i))
        for c in decoupled(parent.config, SMALL, i):
            stored = alternative(block, parent.config, c.wanted, i, trained)
            row = layer[c.scope][c.name]
            _, reporting = block_error(stored, "block", states, text.context)
            assert reporting == pytest.approx(row[row["kept"]], rel=1e-4)


def test_what_training_spoils_keeps_the_repaired_weights(tiny: Path, parent: Decoder) -> None:
    ruinous = replace(SMALL, update=replace(SMALL.update, learning_rate=1.0), tokens=1024)
    candidates = [c for c in decoupled(parent.config, SMALL, 2) if c.scope == "ffn"]
    text = text_of(parent, tiny, ruinous)
    weights, errors = distill_layer(parent, 2, candidates, text, ruinous)
    for name, row in errors["ffn"].items():
        if name != "ffn_linear":  # whose refit finds the best matrix from anywhere
            assert row["trained"] > row["repaired"]
            assert row["kept"] == "repaired"
            assert name not in weights.nested
            assert set(weights.own[name]) == {"mlp.down_proj.weight"}


def test_layers_are_the_same_in_any_order(tiny: Path, parent: Decoder) -> None:
    settings = replace(SMALL, tokens=2048, sizes_per_step=1)
    forwards = text_of(parent, tiny, settings)
    in_order = [
        distill_layer(parent, i, decoupled(parent.config, settings, i), forwards, settings)
        for i in range(3)
    ]
    backwards = text_of(parent, tiny, settings)
    for i in (2, 0, 1):
        again, errors = distill_layer(
            parent, i, decoupled(parent.config, settings, i), backwards, settings
        )
        weights, errors_before = in_order[i]
        assert errors == errors_before
        for name, tensors in weights.by_name().items():
            assert all(torch.equal(again.by_name()[name][n], t) for n, t in tensors.items())


def test_a_stopped_run_goes_on_to_the_same_files(tiny: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, tokens=1024)
    bld(settings, inputs_of(tiny), stage_run(tmp_path / "whole"))
    run = stage_run(tmp_path / "stopped")
    stopped_at(5, run, lambda run: bld(settings, inputs_of(tiny), run))  # 2 steps a layer
    done = sorted(path.name for path in (tmp_path / "stopped").glob("layer-*"))
    assert done == ["layer-000.safetensors", "layer-001.safetensors"]
    first = (tmp_path / "stopped/layer-000.safetensors").stat().st_mtime_ns
    bld(settings, inputs_of(tiny), stage_run(tmp_path / "stopped"))
    assert (tmp_path / "stopped/layer-000.safetensors").stat().st_mtime_ns == first
    for name in ("bld.json", *(f"layer-{i:03d}.safetensors" for i in range(4))):
        whole, stopped = (tmp_path / folder / name for folder in ("whole", "stopped"))
        assert whole.read_bytes() == stopped.read_bytes(), name


def test_any_number_of_workers_gives_the_same_files(tiny: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, tokens=1024)
    for count in (1, 2):
        run = stage_run(tmp_path / str(count), workers=Workers(workers=count))
        bld(settings, inputs_of(tiny), run)
    for name in ("bld.json", *(f"layer-{i:03d}.safetensors" for i in range(4))):
        one, two = (tmp_path / folder / name for folder in ("1", "2"))
        assert one.read_bytes() == two.read_bytes(), name
    rows = (tmp_path / "2" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 4 * 2, "a row a step, of whichever process"


def test_a_batch_is_a_function_of_seed_layer_and_step(tiny: Path, parent: Decoder) -> None:
    # 128 tokens of 32 float32 are 1/64 MiB: with 64 batches to the MiB, 100 steps are two chunks.
    settings = replace(SMALL, batch_tokens=128, tokens=128 * 100, frontier_mib=1)
    text = text_of(parent, tiny, settings)
    assert text.steps_per_chunk == 50
    tokens = loader.read_tokens(tiny / "corpus/train.npy")
    got = {(layer, step): text.batch(layer, step).clone() for layer in (0, 2) for step in (3, 60)}
    again = text_of(parent, tiny, settings)
    for (layer, step), states in reversed(got.items()):
        assert torch.equal(again.batch(layer, step), states)
    # The rows are those of the chunk, in the layer's own order, as the parent sees them.
    rows = loader.batch(tokens, seed=0, step=1, batch_size=100, seq_len=64)
    order = np.random.default_rng([0, 2, 1]).permutation(100)[20:22]  # step 60 is its 11th
    x = parent.model.embed_tokens(torch.from_numpy(rows[order, :-1]))
    for block in parent.model.layers[:2]:
        x = block(x, text.context)
    torch.testing.assert_close(got[2, 60], x, rtol=0, atol=1e-5)


def test_a_walk_goes_forward_and_starts_again(parent: Decoder) -> None:
    ids = torch.randint(300, (3, 20))
    walk = Walk(parent, ids)
    third = walk.before(3).states.clone()
    first = walk.before(1).states.clone()
    assert torch.equal(walk.before(3).states, third)
    x = parent.model.embed_tokens(ids)
    torch.testing.assert_close(first, parent.model.layers[0](x, parent.context(1, 20)))


def test_sizes_are_drawn_of_each_scope(parent: Decoder) -> None:
    candidates = decoupled(parent.config, SMALL, 0)
    assert drawn(candidates, 0, seed=[0]) == [c.name for c in candidates]
    counts: dict[str, int] = {}
    for step in range(600):
        names = drawn(candidates, 1, seed=[0, 0, step])
        assert len(names) == 2
        counts |= {name: counts.get(name, 0) + 1 for name in names}
    assert all(count == pytest.approx(200, abs=45) for count in counts.values()), counts


def test_pairs_of_a_search_are_trained_together_and_assembled(tiny: Path, tmp_path: Path) -> None:
    choices = [["gqa4", "ffn64"], ["gqa1", "ffn16"], ["attn_none", "ffn32"], ["gqa1", "ffn_none"]]
    (tmp_path / "search").mkdir()
    write_json(tmp_path / "search/solutions.json", [{"score": 0, "choices": choices}])
    inputs = inputs_of(tiny)
    bld(SMALL, inputs, stage_run(tmp_path / "apart"))
    inputs |= {"search": tmp_path / "search", "library": tmp_path / "apart"}
    bld(SMALL, inputs, stage_run(tmp_path / "together"))
    layers = json.loads((tmp_path / "together/bld.json").read_text())["layers"]
    names = [list(layer.get("block", {})) for layer in layers]
    assert names == [[], ["gqa1+ffn16"], ["attn_none+ffn32"], ["gqa1+ffn_none"]]
    for layer in layers[1:]:
        (row,) = layer["block"].values()
        assert row[row["kept"]] < min(row["decoupled"], row["repaired"])
        assert row["kept"] in ("trained", "refitted")

    off = {}
    small = AssembleSettings(tokens=2048, seq_len=64, repair=False)
    for library in (None, "apart", "together"):
        inputs = inputs_of(tiny) | {"search": tmp_path / "search"}
        if library:
            inputs["library"] = tmp_path / library
        assemble(small, inputs, stage_run(tmp_path / f"child-{library}"))
        off[library] = json.loads((tmp_path / f"child-{library}/repairs.json").read_text())
    errors = {library: rows[-1]["error"] for library, rows in off.items()}
    assert errors["together"] < errors["apart"] < errors[None]


def test_bad_input_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of seq_len"):
        BldSettings(batch_tokens=100, seq_len=64)
    with pytest.raises(ValueError, match="at least batch_tokens"):
        BldSettings(tokens=100)
    settings = replace(SMALL, tokens=512)
    bld(settings, inputs_of(tiny), stage_run(tmp_path / "bld"))
    alone = inputs_of(tiny) | {"library": tmp_path / "bld"}
    with pytest.raises(ValueError, match="give --search with it"):
        bld(settings, alone, stage_run(tmp_path / "again"))
    (tmp_path / "search").mkdir()
    write_json(tmp_path / "search/solutions.json", [{"choices": [["gqa4", "ffn64"]] * 3}])
    with pytest.raises(ValueError, match="3 layers, but the parent has 4"):
        bld(settings, alone | {"search": tmp_path / "search"}, stage_run(tmp_path / "again"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/ranking.safetensors").write_bytes(b"other")
    others = alone | {"search": tmp_path, "ranking": tmp_path / "other"}
    with pytest.raises(ValueError, match="trained for another ranking"):
        bld(settings, others, stage_run(tmp_path / "again"))
