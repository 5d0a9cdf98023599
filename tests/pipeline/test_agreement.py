"""Folders that don't belong together are refused by one sentence, before any work."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support import swap_tokens

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.distill.settings import DistillSettings
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.pipeline.agreement import check_inputs
from fretsaw.puzzle.settings import RankSettings
from fretsaw.stage import artifact, whole

ROWS = RankSettings(tokens=64, seq_len=64)


def other_shape(tiny: Path, out: Path, **changes: int) -> Path:
    """Write a checkpoint of another shape with the parent's tokenizer."""
    config = checkpoint.read_config(tiny / "parent")
    wanted = {
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        **changes,
    }
    decoder = Decoder(
        ModelConfig.uniform(
            **wanted, num_key_value_heads=2, intermediate_size=32, num_attention_heads=4, head_dim=8
        )
    )
    checkpoint.save(decoder, out, like=tiny / "parent")
    return out


def test_what_belongs_together_passes(tiny: Path) -> None:
    inputs = {name: tiny / name for name in ("parent", "corpus", "ranking")}
    check_inputs("score", ROWS, inputs)
    check_inputs("distill", DistillSettings(), {**inputs, "child": tiny / "parent"})
    check_inputs("rank", ROWS, {"parent": tiny / "not there", "corpus": tiny / "corpus"})


@pytest.mark.parametrize("given", ["parent", "nothing", "parent/config.json"])
def test_what_another_stage_wrote(tiny: Path, given: str) -> None:
    inputs = {"parent": tiny / "parent", "corpus": tiny / given}
    with pytest.raises(ValueError, match=r"no train\.npy; as corpus .* `fretsaw corpus` wrote"):
        check_inputs("rank", ROWS, inputs)


def test_rows_longer_than_the_context(tiny: Path) -> None:
    longest = checkpoint.read_config(tiny / "parent").max_position_embeddings
    settings = replace(ROWS, seq_len=longest + 1, tokens=longest + 1)
    with pytest.raises(ValueError, match=rf"seq_len {longest + 1}: the context of .* is {longest}"):
        check_inputs("rank", settings, {"parent": tiny / "parent", "corpus": tiny / "corpus"})


def test_text_of_another_tokenizer(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "corpus", tmp_path / "corpus")
    swap_tokens(tmp_path / "corpus")
    inputs = {"parent": tiny / "parent", "corpus": tmp_path / "corpus"}
    with pytest.raises(ValueError, match="tokenised by another tokenizer"):
        check_inputs("rank", ROWS, inputs)


def test_a_ranking_of_another_parent(tiny: Path, tmp_path: Path) -> None:
    other = other_shape(tiny, tmp_path / "other", num_hidden_layers=2)
    made_of = {"parent": {"path": str(other), "hash": artifact.hash_path(other)}}
    manifest = {"schema": 1, "stage": "rank", "settings": {}, "inputs": made_of, "outputs": {},
                "seed": 0, "versions": {}, "metrics": {},
                "run": {"wall_s": 1.0, "finished": ""}}  # fmt: skip
    ranking = shutil.copytree(tiny / "ranking", tmp_path / "ranking")
    whole.write_json(ranking / artifact.MANIFEST, manifest)
    inputs = {"parent": tiny / "parent", "ranking": ranking}
    with pytest.raises(ValueError, match="ranks another parent"):
        check_inputs("score", ROWS, inputs)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"vocab_size": 320}, "vocab_size 320.*give its own parent"),
        ({"hidden_size": 64}, "hidden_size 64.*set cosine_weight to 0"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 3.*set cosine_weight to 0"),
    ],
)
def test_a_child_that_is_compared_with_another_parent(
    tiny: Path, tmp_path: Path, changes: dict[str, int], match: str
) -> None:
    child = other_shape(tiny, tmp_path / "child", **changes)
    inputs = {"parent": tiny / "parent", "child": child}
    with pytest.raises(ValueError, match=match):
        check_inputs("distill", DistillSettings(cosine_weight=1.0), inputs)
    if "vocab_size" not in changes:
        check_inputs("distill", DistillSettings(cosine_weight=0.0), inputs)
