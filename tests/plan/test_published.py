"""The published models: exact sizes, and how far the foreseen speeds are from the papers'."""

import subprocess
from dataclasses import replace

import pytest

from fretsaw.checkpoint.decilm import blocks_from_mults, config_from_json, config_to_json
from fretsaw.model.size import kv_bytes, num_params
from fretsaw.pipeline.recipe import find_recipe, load_recipe, published_of
from fretsaw.plan.published import (
    LLAMA_8B,
    LLAMA_70B,
    LLAMA_405B,
    PARENTS_RATES,
    Deployment,
    Published,
    cached_tokens,
    fit_efficiencies,
    render_published,
)
from fretsaw.training.optimizer import rate_factor


def published(name: str) -> Published:
    found = published_of(name)
    assert isinstance(found, Published)
    return found


def test_parameters_and_cache_are_exact() -> None:
    assert num_params(LLAMA_8B) == 8_030_261_248  # Nano, whose architecture is its parent's
    assert num_params(LLAMA_70B) == 70_553_706_496
    assert num_params(LLAMA_405B) == 405_853_388_800
    assert kv_bytes(LLAMA_8B, "bf16") == 2 * 32 * 8 * 128 * 2
    child = published("ln_super").models["child"]
    assert num_params(child) == 49_867_145_216
    assert kv_bytes(child, "fp8") == 49 * 2 * 8 * 128
    assert sum(block.attention == "none" for block in child.blocks) == 31
    ultra = published("ln_ultra").models
    assert num_params(ultra["child"]) == 253_401_268_224
    assert kv_bytes(ultra["child"], "fp8") == 64 * 2 * 8 * 128
    assert ultra["child"].num_hidden_layers == 162
    assert sum(b.attention == b.ffn == "none" for b in ultra["child"].blocks) == 81
    fused = sorted(b.intermediate_size for b in ultra["child"].blocks)[-4:]
    assert fused == [301_056, 343_040, 399_360, 425_984]


def test_before_fusing_there_are_as_many_ffns_as_the_parent_has_layers() -> None:
    ultra = published("ln_ultra").models
    before = ultra["unfused"]
    assert before.num_hidden_layers == 126
    norms = (8 + 12 + 15 + 14 - 4) * before.hidden_size  # the fused ones' that are left out
    assert num_params(before) == num_params(ultra["child"]) + norms


def test_what_fits_beside_the_weights() -> None:
    child = published("ln_super").models["child"]
    assert cached_tokens(child, "h100", "fp8") == (80_000_000_000 - 49_867_145_216) // 100_352
    assert cached_tokens(LLAMA_405B, "h100", "fp8") == 0
    ultra = published("ln_ultra")
    for cache in (*published("ln_super").caches, *ultra.caches[:1]):
        model = child if cache.tokens == 300_000 else ultra.models["child"]
        ours = cached_tokens(model, cache.device, cache.dtype)
        assert ours == pytest.approx(cache.tokens, rel=0.02)


@pytest.mark.parametrize("name", ["ln_super", "ln_ultra"])
def test_speeds_over_the_parent_are_within_15_percent_of_the_published(name: str) -> None:
    constants = fit_efficiencies()
    claims = published(name).claims
    assert len(claims) == 2
    for claim in claims:
        fast, slow = (s.tokens_per_s(claim.metric, constants) for s in (claim.faster, claim.slower))
        assert fast / slow == pytest.approx(claim.ratio, rel=0.15), claim.what


def test_the_efficiencies_are_fitted_on_parents_alone() -> None:
    assert {num_params(rate.served.config) for rate in PARENTS_RATES} == {
        num_params(LLAMA_70B),
        num_params(LLAMA_405B),
    }
    constants = fit_efficiencies()
    for rate in PARENTS_RATES:
        foreseen = rate.served.tokens_per_s(rate.metric, constants)
        assert foreseen == pytest.approx(rate.tokens_per_s, rel=0.2), rate.what
    assert fit_efficiencies(PARENTS_RATES[:1]) != constants


def test_a_batch_that_does_not_fit_is_cut_and_one_row_must_fit() -> None:
    scenario = "batch=256,in=128,out=1024,dtype=fp8,device=h100"
    assert Deployment(config=LLAMA_70B, scenario=scenario).fitted.batch == 50
    assert Deployment(config=LLAMA_8B, scenario=scenario).fitted.batch == 256
    with pytest.raises(ValueError, match="leave no room for one request of 1152 tokens on h100"):
        _ = Deployment(config=LLAMA_405B, scenario=scenario).fitted


def test_a_table_of_blocks_reads_like_the_published_config() -> None:
    for name in ("ln_super", "ln_ultra"):
        child = published(name).models["child"]
        raw = config_to_json(child, dtype="bf16")
        mults = {entry["ffn"].get("ffn_mult") for entry in raw["block_configs"]}
        assert (5.25 if name == "ln_super" else 36.5625) in mults
        assert config_from_json(raw) == child
    with pytest.raises(AssertionError, match="layer 1 comes next"):
        blocks_from_mults("0 a/1.0; 2 a/1.0", hidden_size=64, num_key_value_heads=4)


def test_the_page_of_a_published_model() -> None:
    text = render_published(published("ln_ultra"))
    assert "253,401,268,224" in text
    assert "1.71x" in text
    assert max(map(len, text.splitlines())) <= 100
    alone = replace(published("ln_super"), claims=())
    assert "efficiencies" not in render_published(alone)


@pytest.mark.parametrize("name", ["ln_super", "ln_ultra"])
def test_their_recipes_are_chains(name: str) -> None:
    stages = load_recipe(find_recipe(name), {"data": "text.jsonl", "checkpoint": "PARENT"})
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert names[0] == "corpus"
    last = "child/eval" if name == "ln_super" else "child/cpt"
    assert names[-1] == last or names[-1].endswith("/eval")


def test_they_are_tuned_by_the_papers_schedules() -> None:
    """Rates, batch and lengths are the paper's (arXiv 2505.00949, section 4)."""
    given = {"data": "text.jsonl", "checkpoint": "PARENT", "conversations": "rows.jsonl"}
    of_super = load_recipe(find_recipe("ln_super"), given)[-1]
    assert [of_super.settings.epochs, of_super.settings.seq_len] == [1, 16_384]
    update = of_super.settings.update
    rates = {rate_factor(update, step=step, num_steps=50) for step in range(50)}
    assert [update.learning_rate, rates] == [5e-6, {1.0}]
    *_, first, again = load_recipe(find_recipe("ln_ultra"), given)
    assert first.inputs["model"] == "child/cpt"
    assert again.inputs["model"] == first.name  # a stage begins with a fresh optimizer
    assert first.settings.batch_tokens == 256 * first.settings.seq_len == 256 * 24_576
    rates = [rate_factor(first.settings.update, step=step, num_steps=50) for step in range(50)]
    assert rates.index(max(rates)) == 4  # 10 % of the steps
    assert 1e-5 * rates[-1] == pytest.approx(1e-6)
    files = {"reasoning": "a", "mixed": "b", "blend": "c"}
    stages = load_recipe(find_recipe("ln_nano"), {**files, "checkpoint": "PARENT"})[:3]
    assert [stage.inputs["data"] for stage in stages] == [["a"], ["b"], ["c"]]
    assert [stages[0].settings.epochs, stages[0].settings.update.learning_rate] == [4, 1e-4]


def test_the_command_needs_no_torch_and_no_weights() -> None:
    from test_layout import without_torch

    done: subprocess.CompletedProcess = without_torch("plan", "ln_super")
    assert done.returncode == 0, done.stderr
    assert "49,867,145,216" in done.stdout
