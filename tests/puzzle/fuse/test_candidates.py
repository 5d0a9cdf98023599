"""Which groups of FFNs can be fused, and which of them fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.puzzle.fuse.candidates import by_the_papers_rule, candidates, repairable
from fretsaw.puzzle.library.runs import Group
from fretsaw.puzzle.settings import FuseSettings

SETTINGS = FuseSettings(repair_tokens=2048)
BARE = BlockConfig(attention="none", ffn="swiglu", intermediate_size=64)


@pytest.fixture
def config(tiny: Path) -> ModelConfig:
    """The small parent without the attention of its layers 1 to 3."""
    parent = checkpoint.read_config(tiny / "parent")
    return replace(parent, blocks=(parent.blocks[0], *[BARE] * 3))


def test_the_papers_rule_leaves_the_last_out() -> None:
    blocks = [BARE] * 10
    runs = [list(range(10))]
    assert by_the_papers_rule(blocks, runs, 0) == [Group(0, 8)]
    assert by_the_papers_rule(blocks, runs, 4 * 64) == [Group(0, 3), Group(4, 7)]
    assert by_the_papers_rule(blocks, [[0, 1]], 0) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(SETTINGS, max_width=100), "max_width 100, but the narrowest group is 128 wide"),
        (replace(SETTINGS, max_width=150, groups=("0-3",)), "groups given are 256 wide"),
        (replace(SETTINGS, groups=("0-7",)), "the model has layers 0 to 3"),
        (replace(SETTINGS, groups=("2-2",)), "1 FFN, and fusing takes two"),
        (replace(SETTINGS, groups=("two",)), "as in 42-50"),
        (replace(SETTINGS, groups=("3-2",)), "write 2-3"),
    ],
)
def test_groups_that_are_none(config: ModelConfig, settings: FuseSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        candidates(config, settings)


def test_what_can_be_fused_and_what_not(tiny: Path, config: ModelConfig) -> None:
    assert candidates(config, replace(SETTINGS, max_width=128)) == (
        [Group(0, 1), Group(1, 2), Group(2, 3)],
        True,
    )
    assert candidates(config, replace(SETTINGS, rule="paper")) == ([Group(0, 2)], False)
    parent = checkpoint.read_config(tiny / "parent")
    assert candidates(parent, SETTINGS) == ([], True)
    with pytest.raises(ValueError, match="out of reach; no two FFNs follow each other"):
        candidates(parent, replace(SETTINGS, target="1.1x decode"))
    pairs = BlockConfig(attention="gqa", num_key_value_heads=4, ffn="swiglu", intermediate_size=64)
    in_pairs = replace(config, blocks=(pairs, BARE, pairs, BARE))
    assert candidates(in_pairs, replace(SETTINGS, rule="paper")) == ([], False)


def test_groups_too_wide_to_repair(config: ModelConfig, capsys: pytest.CaptureFixture[str]) -> None:
    blocks, groups = config.blocks, [Group(0, 1), Group(0, 3)]
    assert repairable(blocks, groups, SETTINGS, 128, is_open=True) == groups[:1]
    assert "1 of 2 groups are left out: to repair an FFN more than 128" in capsys.readouterr().err
    plain = replace(SETTINGS, repair_tokens=0)
    assert repairable(blocks, groups, plain, 0, is_open=False) == groups
    for some, is_open in ((groups, False), (groups[1:], True)):
        with pytest.raises(ValueError, match="max_width to 128 or less, or repair_tokens to 0"):
            repairable(blocks, some, SETTINGS, 128, is_open=is_open)
