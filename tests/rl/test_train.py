"""Reinforcement: one model samples and learns; what is cut, packed or resumed changes nothing."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rl.toy import SETTINGS
from support import stage_run, stopped_at

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.decoder import Decoder
from fretsaw.rl.settings import RlSettings
from fretsaw.rl.train import reinforce
from fretsaw.rl.update import answer_logprobs, policy_gradient
from fretsaw.rollout.rows import Row, read_rows, write_rows
from fretsaw.tasks import word_problems


def test_every_sample_and_verdict_is_kept(finished: tuple[Path, dict]) -> None:
    out, metrics = finished
    rows = [row for path in sorted((out / "rollouts").iterdir()) for row in read_rows(path)]
    assert len(rows) == 2 * 8 * 8
    assert {row.mode for row in rows} == {"on", "off"}
    assert [row.weight_version for row in rows] == [0] * 64 + [2] * 64
    config = checkpoint.read_config(out)
    for row in rows:
        assert row.reward == row.correct * (row.fault is None) * row.is_finished
        assert len(row.logprobs) == len(row.token_ids) <= 12
        assert row.is_finished == (
            row.token_ids[-1] in (*config.eos_token_ids, config.bos_token_id)
        )
        assert f"detailed thinking {row.mode}" in row.prompt
    assert metrics.keys() >= {"before_reward_on", "heldout_reward_off"}
    assert config.blocks[1].attention == "none"


def test_the_engine_samples_from_the_trainers_own_weights(
    chat_model: Path, finished: tuple[Path, dict]
) -> None:
    model = checkpoint.load(chat_model)
    for row in read_rows(finished[0] / "rollouts/00000.parquet"):
        ids = torch.tensor([row.prompt_ids + row.token_ids])
        logprobs = model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        alone = logprobs[len(row.prompt_ids) - 1 :]
        torch.testing.assert_close(torch.tensor(row.logprobs), alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.tensor(row.trainer_logprobs), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_stopped_run_ends_bitwise_as_one_that_never_stopped(
    chat_model: Path, problems: Path, finished: tuple[Path, dict], tmp_path: Path, stop_at: int
) -> None:
    def go(run):
        return reinforce(SETTINGS, {"model": chat_model, "problems": problems}, run)

    stopped_at(stop_at, stage_run(tmp_path), go)
    assert go(stage_run(tmp_path)) == finished[1]
    for name in ("model.safetensors", "rollouts/00000.parquet", "rollouts/00001.parquet"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


# --- the gradient ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(chat_model: Path, finished: tuple[Path, dict]) -> list[Row]:
    """Answers of several lengths with advantages, as an update reads them."""
    rows = read_rows(finished[0] / "rollouts/00000.parquet")[::4]
    return [
        replace(row, advantage=0.5 + 0.1 * i, token_ids=row.token_ids[: 1 + i % 5])
        for i, row in enumerate(rows)
    ]


def with_logprobs(rows: list[Row], model: Decoder, shift: float) -> list[Row]:
    own = answer_logprobs(model, rows, 512, "fp32")
    return [
        replace(
            row,
            trainer_logprobs=[x + shift * (-1) ** i for i, x in enumerate(logprobs)],
            ref_logprobs=[x - shift for x in logprobs],
        )
        for row, logprobs in zip(rows, own, strict=True)
    ]


def gradient(
    chat_model: Path, rows: list[Row], settings: RlSettings, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    model = checkpoint.load(chat_model).to(dtype)
    policy_gradient(model, rows, settings, "fp32")
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("average", ["sequence", "token"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_how_an_update_is_cut_packed_and_ordered_changes_no_gradient(
    chat_model: Path, rows: list[Row], average: str, dtype: torch.dtype, tolerance: float
) -> None:
    rows = with_logprobs(rows, checkpoint.load(chat_model), 0.1)
    settings = replace(SETTINGS, average=average)
    whole = gradient(chat_model, rows, settings, dtype)
    for tokens in (1, 200, 100_000):
        cut = gradient(chat_model, rows, replace(settings, micro_batch_tokens=tokens), dtype)
        assert relative(cut, whole) < tolerance
    assert relative(gradient(chat_model, rows[::-1], settings, dtype), whole) < tolerance


def test_the_first_step_on_policy_is_reinforce_without_padding_or_packing(
    chat_model: Path, rows: list[Row]
) -> None:
    settings = replace(SETTINGS, kl_coef=0.0)
    model = checkpoint.load(chat_model).double()
    rows = with_logprobs(rows, model, 0.0)
    loss = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.token_ids])
        logprobs = model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        loss = loss - row.advantage * logprobs[len(row.prompt_ids) - 1 :].mean() / len(rows)
    loss.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert relative(gradient(chat_model, rows, settings), wanted) < 1e-6


def test_answers_without_an_advantage_are_left_out_and_still_counted(
    chat_model: Path, rows: list[Row]
) -> None:
    settings = replace(SETTINGS, kl_coef=0.0)
    rows = with_logprobs(rows, checkpoint.load(chat_model), 0.1)
    idle = [replace(row, advantage=0.0, trainer_logprobs=[], ref_logprobs=[]) for row in rows]
    half = gradient(chat_model, rows + idle, settings)
    assert relative(2 * half, gradient(chat_model, rows, settings)) < 1e-6


def test_a_table_is_read_as_it_was_written(rows: list[Row], tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", rows)
    assert read_rows(tmp_path / "a.parquet") == rows


# --- what is refused ------------------------------------------------------------------------------


def test_ones_own_problems(chat_model: Path, problems: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, on_share=0.0)
    metrics = reinforce(settings, {"model": chat_model, "problems": problems}, stage_run(tmp_path))
    assert metrics["rollouts"] == 2
    kept = {row.problem for row in read_rows(tmp_path / "rollouts/00000.parquet")}
    assert kept <= {str(i) for i in range(20)}


def refused(
    chat_model: Path, tmp_path: Path, message: str, change: Callable[[RlSettings], RlSettings]
) -> None:
    settings = replace(SETTINGS, task="word_problems:steps=1", num_problems=8)
    with pytest.raises(ValueError, match=message):
        reinforce(change(settings), {"model": chat_model}, stage_run(tmp_path))


def test_a_first_rollout_without_signal_is_refused(chat_model: Path, tmp_path: Path) -> None:
    refused(
        chat_model,
        tmp_path,
        r"equal within the first rollout's 8 groups.*64 cut at max_tokens\); raise",
        lambda s: replace(s, max_tokens=1, on_share=1.0),
    )
    assert not list((tmp_path / "rollouts").iterdir())


def test_a_prompt_that_leaves_no_room_is_refused(chat_model: Path, tmp_path: Path) -> None:
    refused(
        chat_model,
        tmp_path,
        r"problem 0: \d+ tokens and max_tokens 1000 .* context is 1024; lower max_tokens",
        lambda s: replace(s, max_tokens=1000),
    )


def test_a_base_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this is no chat model; tune it with `fretsaw sft` first"):
        reinforce(
            replace(SETTINGS, task="word_problems", num_problems=4),
            {"model": tiny / "parent"},
            stage_run(tmp_path),
        )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"group_size": 1}, "at least 2"),
        ({"prompts_per_rollout": 5}, "multiple of updates_per_rollout 2"),
        ({"on_share": 1.5}, "lies in 0 to 1"),
        ({"temperature": 0.0}, "must be positive"),
        ({"num_rollouts": 0}, "at least 1"),
        ({"num_problems": 0}, "num_problems: 0; lies in 1 to 1000000"),
        ({"num_problems": 10**12}, "num_problems: 1000000000000; lies in 1 to"),
        ({"heldout_problems": -1}, "heldout_problems: -1; lies in 0 to"),
        ({"heldout_every": 0}, "heldout_every: 0; give at least 1"),
        ({"max_batch": 0}, "max_batch: 0; give at least 1"),
        ({"micro_batch_tokens": -5}, "micro_batch_tokens: -5; give at least 1"),
        ({"on_share": math.nan}, "on_share: nan; lies in 0 to 1"),
        ({"clip_low": 2.0}, "clip_low: 2.0; lies in 0 to 1"),
        ({"clip_high": -0.1}, "clip_high: -0.1; give at least 0"),
        ({"kl_coef": -1.0}, "kl_coef: -1.0; give at least 0"),
        ({"kl_coef": math.inf}, "kl_coef: inf; give at least 0"),
        ({"save_every_s": math.nan}, "save_every_s: nan; give at least 0"),
        ({"temperature": 1e9}, "temperature: 1000000000.0; .* 1000 at most"),
        ({"temperature": math.inf}, "temperature: inf; .* 1000 at most"),
    ],
)
def test_settings_say_what_is_wrong(change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(SETTINGS, **change)


def test_no_held_out_problems_measure_nothing(chat_model: Path, tmp_path: Path) -> None:
    settings = replace(
        SETTINGS,
        task="word_problems:steps=1,max_value=17",
        num_problems=20,
        num_rollouts=1,
        heldout_problems=0,
        needs_signal=False,
    )
    assert reinforce(settings, {"model": chat_model}, stage_run(tmp_path)) == {"rollouts": 1}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"num_problems": 20_000},
            "num_problems: 20000; '.*' has about .* different ones; ask for",
        ),
        ({"heldout_problems": 20_000}, "heldout_problems: 20000; '.*' has about"),
    ],
)
def test_more_problems_than_there_are(
    chat_model: Path, tmp_path: Path, monkeypatch, change: dict, match: str
) -> None:
    monkeypatch.setattr(word_problems, "MAX_REPEATS", 2)
    task = "word_problems:steps=1,max_value=17,phrasing=heldout"
    refused(chat_model, tmp_path, match, lambda s: replace(s, task=task, **change))
