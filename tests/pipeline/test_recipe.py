"""Recipes: what ships can be loaded, and what is wrong with one's own is named."""

from functools import partial
from pathlib import Path

import pytest

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.distill.settings import DistillSettings, TrainSettings
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.pipeline.compress import compress_stages
from fretsaw.pipeline.compression import compression
from fretsaw.pipeline.kinds import STAGES
from fretsaw.pipeline.recipe import Stage, find_recipe, load_recipe
from fretsaw.pipeline.walk import resolve_inputs
from fretsaw.puzzle.settings import BldSettings, FuseSettings, ScoreSettings
from fretsaw.report.settings import ReportSettings

NOT_IN_TINY = {"bld", "verify", "teach", "cpt", "select", "fuse"}


def test_the_tiny_recipe_is_a_chain_of_known_stages(tmp_path: Path) -> None:
    for fast in (False, True):
        stages = load_recipe(find_recipe("tiny"), {"fast": fast})
        for i, stage in enumerate(stages):
            paths = resolve_inputs(stage, stages, tmp_path)
            made = {tmp_path / earlier.name for earlier in stages[:i]}
            assert set(paths.values()) <= made, stage.name
        assert {stage.kind for stage in stages} == set(STAGES) - NOT_IN_TINY


def test_candidates_are_healed_briefly_and_one_of_them_at_length(tmp_path: Path) -> None:
    distill = DistillSettings(train=TrainSettings(tokens=81_920, batch_tokens=4096))
    plain, several = (
        compression(
            parent=tmp_path, target="2x decode", scenario="batch=1", distill=distill, candidates=k
        )
        for k in (1, 3)
    )
    assert [stage.name for stage in plain] == [
        *("rank", "score", "cost", "2x-decode/search", "2x-decode/assemble", "2x-decode/distill"),
        *("2x-decode/eval", "parent-fp8", "parent-int8", "2x-decode/bench", "2x-decode/report"),
    ]
    by_name = {stage.name.removeprefix("2x-decode/"): stage for stage in several}
    search = by_name["search"].settings
    assert (search.target, search.num_solutions, search.alpha) == ("2x decode", 3, 0.8)
    assert search.pool == ("greedy", "max_params")
    for i in range(3):
        assert by_name[f"assemble{i}"].settings.solution == i
        assert by_name[f"brief{i}"].settings.train.tokens == 8192
        assert by_name[f"brief{i}"].inputs["child"] == f"2x-decode/assemble{i}"
    assert by_name["distill"].inputs["child"] == "2x-decode/select"
    assert by_name["distill"].settings == distill
    paths = resolve_inputs(by_name["select"], several, tmp_path)
    assert list(paths) == ["child", "child1", "child2", "assembled", "assembled1", "assembled2"]
    assert paths["child2"] == tmp_path / "2x-decode/brief2"
    with pytest.raises(ValueError, match="candidates 0"):
        compression(parent=tmp_path, target="2x decode", scenario="batch=1", candidates=0)


def test_trained_alternatives_are_scored_and_assembled() -> None:
    stages = compression(
        parent="parent",
        target="1.5x decode",
        scenario="batch=4,in=8,out=8,dtype=fp32,device=cpu",
        bld=BldSettings(tokens=4096),
    )
    kinds = [stage.kind for stage in stages]
    assert kinds.index("rank") < kinds.index("bld") < kinds.index("score")
    reading = {stage.kind for stage in stages if stage.inputs.get("library") == "bld"}
    assert reading == {"score", "assemble", "report"}


def test_the_stories_recipe_asks_for_its_files() -> None:
    with pytest.raises(ValueError, match=r"needs 'checkpoint'.*--arg"):
        load_recipe(find_recipe("stories"), {})
    with pytest.raises(ValueError, match="takes no 'colour'"):
        load_recipe(find_recipe("tiny"), {"colour": "red"})


def test_the_smollm2_recipe_shares_what_both_speeds_need() -> None:
    found = find_recipe("smollm2")
    stages = load_recipe(found, {"checkpoint": "parent", "text": "a.txt,b.jsonl:0.5"})
    names = [stage.name for stage in stages]
    assert names[:4] == ["corpus", "rank", "score", "cost"]
    assert len(set(names)) == len(names) == 4 + 2 * 6
    assert stages[0].settings.weights == (1.0, 0.5)
    alone = load_recipe(found, {"checkpoint": "parent", "fast": True})[0]
    assert (alone.settings.source, "data" in alone.inputs) == ("self", False)


def test_what_is_no_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="shipped: ln_nano, ln_super, ln_ultra, smollm2, stories, tiny"
    ):
        find_recipe("huge")
    with pytest.raises(ValueError, match="no such recipe file"):
        find_recipe(str(tmp_path / "mine.py"))
    (tmp_path / "mine.py").write_text("x = 1")
    with pytest.raises(ValueError, match="defines no recipe"):
        load_recipe(tmp_path / "mine.py", {})


def test_a_stage_without_its_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks"):
        resolve_inputs(Stage("report", ReportSettings()), [], tmp_path)


def test_fusing_is_searched_jointly_unless_whole_children_are_compared(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("word " * 100)
    parent = tmp_path / "parent"
    parent.mkdir()
    config = ModelConfig.uniform(
        num_hidden_layers=2,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=300,
        hidden_size=16,
        num_attention_heads=2,
        head_dim=8,
    )
    tokenizer = Tokenizer.train(["word "], 300)
    decoder = Decoder(config)
    decoder.init_weights(0)
    checkpoint.write(decoder, parent, tokenizer=tokenizer)
    compress = partial(
        compress_stages, parent, data=[text], target="1.5x decode", device="cpu", seq_len=1024
    )
    for stages, is_joint in (
        (compress(fuse=True), True),
        (compress(fuse=True, verify=True), False),
        (compress(fuse=True, candidates=2), False),
    ):
        (score,) = [s.settings for s in stages if isinstance(s.settings, ScoreSettings)]
        (fuse,) = [s for s in stages if isinstance(s.settings, FuseSettings)]
        assert (score.fused > 1) == is_joint
        assert ("search" in fuse.inputs) == is_joint
        assert fuse.settings.dependency_tokens >= 1024
    assert not any(s.kind == "fuse" for s in compress())
