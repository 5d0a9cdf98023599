"""The models that are timed: enough to tell every cost, and none of them twice."""

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.puzzle.costs.additive import fit_additive, predict
from fretsaw.puzzle.costs.probes import (
    alternative_names,
    own_block,
    stacks,
    whole_models,
    with_first_attention,
    without_twins,
)
from fretsaw.puzzle.settings import SpaceSettings

CONFIG = ModelConfig.uniform(
    num_hidden_layers=8,
    num_key_value_heads=4,
    intermediate_size=384,
    vocab_size=10,
    hidden_size=64,
    num_attention_heads=8,
    head_dim=8,
)
NAMES = alternative_names(CONFIG, SpaceSettings())


def test_one_model_a_cost_and_one_for_what_is_fixed() -> None:
    models = stacks(CONFIG, NAMES, 4)
    unknown = [name for name in NAMES if not name.endswith("_none")]
    # The parent's own block twice over, and every alternative but its own two beside it.
    assert len(models) == 2 + len(NAMES) - 2
    true = {"fixed": 5.0} | {name: 1.0 + len(name) for name in unknown}
    times = {name: predict(true, blocks) for name, blocks in models.items()}
    fitted = fit_additive(models, times)
    assert fitted.keys() == true.keys()


def test_the_parent_is_not_timed_again_as_a_stack() -> None:
    models = {**stacks(CONFIG, NAMES, 4), **whole_models(CONFIG, SpaceSettings(), 2, 0)}
    kept = without_twins(models)
    assert len(kept) == len(models) - 1
    assert {"parent", "child 0", "child 1", "gqa4 ffn384 x4"} <= kept.keys()
    assert "gqa4 ffn384 x8" not in kept


def test_layer_0_gets_an_attention() -> None:
    models = stacks(CONFIG, ["attn_none"], 2)
    blocks = with_first_attention(models, own_block(CONFIG))["attn_none ffn384 x4"]
    assert [b.attention_name for b in blocks] == ["gqa4", *["attn_none"] * 3]
    assert all(isinstance(b, BlockConfig) and b.ffn_name == "ffn384" for b in blocks)


def test_a_child_that_is_the_parent_does_not_take_its_place() -> None:
    models = whole_models(CONFIG, SpaceSettings(), 1, 0)
    twin = {**models, "child 0": list(CONFIG.blocks)}
    assert without_twins(twin).keys() == {"parent"}
