"""Reinforcement learning on graded answers: sample, grade, judge within groups, update."""

import copy
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fretsaw.chat.reasoning import MODES
from fretsaw.chat.toggle import Toggle, toggle_of
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.engine.engine import Engine
from fretsaw.model.decoder import Decoder
from fretsaw.rl.advantage import group_advantages
from fretsaw.rl.settings import RlSettings
from fretsaw.rl.update import answer_logprobs, is_used, policy_gradient
from fretsaw.rollout.rows import Row, read_rows, write_rows
from fretsaw.rollout.sampler import Sampler
from fretsaw.stage import artifact
from fretsaw.stage.execute import StageRun
from fretsaw.tasks.answers import answer
from fretsaw.tasks.problem import Problem
from fretsaw.tasks.prompt import Prompt, chat_prompt
from fretsaw.tasks.task import load_problems
from fretsaw.training.optimizer import apply_gradients, build_optimizers
from fretsaw.training.state import TrainingState, saved_bytes

ROLLOUTS = "rollouts"


def reinforce(settings: RlSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Train a chat model on problems; every sampled answer and its verdict stays in `rollouts/`.

    One model samples and learns: the engine decodes with the trainer's own weights. An update is a
    function of the rollout's table, so a run that was stopped between two updates goes on from it.
    """
    # --- set-up -----------------------------------------------------------------------------------
    model = checkpoint.load(inputs["model"], device=run.device)
    tokenizer = Tokenizer.from_folder(inputs["model"])
    checkpoint.check_tokenizer(tokenizer, model.config)
    toggle = toggle_of(inputs["model"])
    problems, heldout = _problems(settings, inputs.get("problems"), run.seed)
    for problem, mode in itertools.product((*problems, *heldout), MODES):
        prompt = chat_prompt(tokenizer, problem, mode, toggle)
        _check_length(prompt, settings, model.config.max_position_embeddings)
    artifact.require_disk(run.folder, saved_bytes(model.config))
    reference = copy.deepcopy(model).requires_grad_(False) if settings.kl_coef else None
    optimizers = build_optimizers(model, settings.update)
    state = TrainingState(run.resume_folder, model, optimizers)
    sampler: Sampler = Engine(model, max_batch=settings.max_batch)
    folder = run.folder / ROLLOUTS
    folder.mkdir(exist_ok=True)

    # --- state ------------------------------------------------------------------------------------
    if not state.resume():
        state.scalars = _heldout_figures(sampler, tokenizer, toggle, heldout, settings, "before")
        state.save()
    run.progress.rewind(state.step)
    run.progress.start("reinforcing", settings.num_updates, step=state.step, unit="update")

    # --- loop -------------------------------------------------------------------------------------
    while state.step < settings.num_updates:
        started = time.monotonic()
        index, part = divmod(state.step, settings.updates_per_rollout)
        path = folder / f"{index:05d}.parquet"
        metrics: dict[str, float] = {}
        if not path.is_file():
            sampler.load_weights((), version=state.step)
            rows = _roll_out(sampler, tokenizer, toggle, problems, settings, run.seed, index)
            rows = _with_logprobs(rows, model, reference, settings, run.dtype)
            if index == 0 and settings.needs_signal:
                _check_signal(rows, settings)
            write_rows(path, rows)
        rows = read_rows(path)
        if part == 0:
            metrics |= rollout_figures(rows, settings.group_size)
            metrics["sample_s"] = time.monotonic() - started
        groups = settings.prompts_per_rollout // settings.updates_per_rollout
        mine = [row for row in rows if row.group // groups == part]
        updating = time.monotonic()
        metrics |= policy_gradient(model, mine, settings, run.dtype, run.check_sooner)
        metrics |= apply_gradients(
            model, optimizers, settings.update, step=state.step, num_steps=settings.num_updates
        )
        metrics["update_s"] = time.monotonic() - updating
        state.step += 1

        is_last = state.step == settings.num_updates
        if is_last or state.step % (settings.heldout_every * settings.updates_per_rollout) == 0:
            sampler.load_weights((), version=state.step)
            figures = _heldout_figures(sampler, tokenizer, toggle, heldout, settings, "heldout")
            metrics |= figures
            state.scalars |= figures
        run.step(state.step, metrics, save=state.save, save_every_s=settings.save_every_s)

    checkpoint.write(model, run.folder, like=inputs["model"], served_as=inputs["model"])
    return {**state.scalars, "rollouts": settings.num_rollouts}


# --- rollout --------------------------------------------------------------------------------------


def _problems(
    settings: RlSettings, file: Path | None, seed: int
) -> tuple[list[Problem], list[Problem]]:
    """Return the problems to train on and those held out."""
    if file is None:
        return (
            load_problems(settings.task, settings.num_problems, seed=seed, split="train"),
            load_problems(settings.task, settings.heldout_problems, seed=seed, split="heldout"),
        )
    problems = load_problems(settings.task, 0, seed=seed, file=file)
    num_heldout = min(settings.heldout_problems, len(problems) // 5)
    order = loader.order(len(problems), len(problems), seed=seed, step=0)
    shuffled = [problems[i] for i in order]
    return shuffled[num_heldout:], shuffled[:num_heldout]


def _check_length(prompt: Prompt, settings: RlSettings, limit: int) -> None:
    length = len(prompt.token_ids)
    if length + settings.max_tokens > limit:
        raise ValueError(
            f"problem {prompt.problem.id}: {length} tokens and max_tokens {settings.max_tokens} to "
            f"answer it, but the model's context is {limit}; lower max_tokens or drop the problem"
        )


def _roll_out(
    sampler: Sampler,
    tokenizer: Tokenizer,
    toggle: Toggle,
    problems: Sequence[Problem],
    settings: RlSettings,
    seed: int,
    index: int,
) -> list[Row]:
    """Sample the groups of one rollout, grade them, and set the advantages."""
    num_prompts, num_on = settings.prompts_per_rollout, settings.num_on
    drawn = loader.order(len(problems), num_prompts, seed=seed, step=index)
    # Modes are spread evenly through the batch, so that every update has its share of both.
    share = [i * num_on // num_prompts for i in range(num_prompts + 1)]
    is_on = [after > before for before, after in itertools.pairwise(share)]
    prompts = [
        chat_prompt(tokenizer, problems[i], "on" if on else "off", toggle)
        for i, on in zip(drawn, is_on, strict=True)
    ]
    rows = answer(
        sampler,
        tokenizer,
        prompts,
        group_size=settings.group_size,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=seed * 1_000_003 + index,
    )
    shape = (num_prompts, settings.group_size)
    advantages = group_advantages(
        torch.tensor([row.reward for row in rows], dtype=torch.float64).view(shape),
        torch.tensor([row.is_finished for row in rows]).view(shape),
        normalise=settings.normalise_rewards,
    )
    values = advantages.flatten().tolist()
    return [replace(row, advantage=value) for row, value in zip(rows, values, strict=True)]


def _with_logprobs(
    rows: list[Row], model: Decoder, reference: Decoder | None, settings: RlSettings, dtype: str
) -> list[Row]:
    """Add the trainer's own log-probabilities, and the reference's, to the rows an update uses."""
    used = [i for i, row in enumerate(rows) if is_used(row, settings)]
    answers = [rows[i] for i in used]
    own = answer_logprobs(model, answers, settings.micro_batch_tokens, dtype)
    ref: list[list[float]] = [[] for _ in answers]
    if reference is not None:
        ref = answer_logprobs(reference, answers, settings.micro_batch_tokens, dtype)
    rows = list(rows)
    for i, trainer_logprobs, ref_logprobs in zip(used, own, ref, strict=True):
        rows[i] = replace(rows[i], trainer_logprobs=trainer_logprobs, ref_logprobs=ref_logprobs)
    return rows


def _check_signal(rows: Sequence[Row], settings: RlSettings) -> None:
    """Refuse to start where no group of the first rollout has anything to prefer."""
    if any(row.advantage for row in rows):
        return
    n = len(rows)
    num_right = sum(row.correct > 0 for row in rows)
    num_faulty = sum(row.fault is not None for row in rows)
    num_cut = sum(not row.is_finished for row in rows)
    remedy = (
        "every answer is right: give harder problems"
        if all(row.reward == rows[0].reward > 0 for row in rows)
        else f"raise max_tokens {settings.max_tokens}"
        if num_cut > n // 2
        else "give easier problems, or tune on examples with `fretsaw sft` first"
    )
    raise ValueError(
        f"rl: rewards are all equal within the first rollout's {n // settings.group_size} groups, "
        f"so there is nothing to learn ({n} answers: {num_right} right, {num_faulty} with a format "
        f"fault, {num_cut} cut at max_tokens); {remedy}"
    )


def _heldout_figures(
    sampler: Sampler,
    tokenizer: Tokenizer,
    toggle: Toggle,
    problems: Sequence[Problem],
    settings: RlSettings,
    prefix: str,
) -> dict[str, float]:
    """Return the mean reward of greedy answers to the held-out problems, by mode."""
    figures = {}
    for mode in MODES if problems else ():
        prompts = [chat_prompt(tokenizer, problem, mode, toggle) for problem in problems]
        rows = answer(sampler, tokenizer, prompts, max_tokens=settings.max_tokens)
        figures[f"{prefix}_reward_{mode}"] = sum(row.reward for row in rows) / len(rows)
        figures[f"{prefix}_tokens_{mode}"] = sum(len(row.token_ids) for row in rows) / len(rows)
    return figures


def rollout_figures(rows: Sequence[Row], group_size: int) -> dict[str, float]:
    """Return what a rollout says of itself, apart by mode where modes differ."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    figures = {}
    for mode in MODES:
        own = [row for row in rows if row.mode == mode]
        if own:
            figures[f"reward_{mode}"] = mean([row.reward for row in own])
            figures[f"tokens_{mode}"] = mean([len(row.token_ids) for row in own])
    groups = [rows[at : at + group_size] for at in range(0, len(rows), group_size)]
    used = [row for row in rows if row.trainer_logprobs]
    differences = [
        math.exp(abs(ours - engines))
        for row in used
        for ours, engines in zip(row.trainer_logprobs, row.logprobs, strict=True)
    ]
    return figures | {
        "finished": mean([row.is_finished for row in rows]),
        "format": mean([row.fault is None for row in rows]),
        "pass_at_group": mean([any(row.reward > 0 for row in group) for group in groups]),
        "active": mean([row.advantage != 0 for row in rows]),
        "generated": sum(len(row.token_ids) for row in rows),
        "engine_error": mean(differences) - 1 if differences else 0.0,
    }
