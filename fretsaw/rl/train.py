"""Reinforcement learning on graded answers: sample, grade, judge within groups, update."""

import copy
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fretsaw.chat.format import require_chat_format
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.model.decoder import Decoder
from fretsaw.rl.rollouts import (
    check_signal,
    drop_damaged,
    purpose_of,
    read_rollout,
    roll_out,
    rollout_figures,
    with_logprobs,
)
from fretsaw.rl.settings import RlSettings
from fretsaw.rl.update import policy_gradient
from fretsaw.rollout.rows import Row, read_rows, write_rows
from fretsaw.rollout.sampler import Sampler
from fretsaw.stage import artifact
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import format_seconds, say
from fretsaw.tasks.answers import answer
from fretsaw.tasks.problem import Problem
from fretsaw.tasks.prompt import Prompt, chat_prompt, manner
from fretsaw.tasks.task import load_problems
from fretsaw.training.optimizer import apply_gradients, build_optimizers
from fretsaw.training.settings import LoraSettings
from fretsaw.training.state import TrainingState
from fretsaw.training.step_memory import kept_bytes

ROLLOUTS = "rollouts"


def reinforce(settings: RlSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Train a chat model on problems; every sampled answer and its verdict stays in `rollouts/`.

    One model samples and learns: the engine decodes with the trainer's own weights. An update is a
    function of the rollout's table, so a run that was stopped between two updates goes on from it.
    """
    # --- set-up -----------------------------------------------------------------------------------
    taught = _taught(settings, inputs, run)
    model = taught.model
    optimizers = build_optimizers(model, settings.update)
    state = TrainingState(run.resume_folder, model, optimizers)
    folder = run.folder / ROLLOUTS
    folder.mkdir(exist_ok=True)
    purpose = purpose_of(settings, inputs, run.seed)

    # --- state ------------------------------------------------------------------------------------
    if not state.resume():
        run.progress.start("measuring", 1, unit="model")
        state.scalars = _heldout_figures(taught, settings, "before", run)
        state.save()
    run.progress.rewind(state.step)
    run.progress.start("reinforcing", settings.num_updates, step=state.step, unit="update")

    # --- loop -------------------------------------------------------------------------------------
    while state.step < settings.num_updates:
        started = time.monotonic()
        index, part = divmod(state.step, settings.updates_per_rollout)
        path = folder / f"{index:05d}.parquet"
        metrics: dict[str, float] = {}
        rows = read_rollout(path, purpose, state.step, settings, run)
        if rows is None:
            rows = _sampled(taught, settings, state.step, run)
            if index == 0 and settings.needs_signal:
                check_signal(rows, settings)
            write_rows(path, rows, purpose=f"{purpose} {index}")
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
        metrics["skipped"] = float(metrics["grad_norm"] == 0)  # then nothing was changed
        metrics["update_s"] = time.monotonic() - updating
        state.step += 1
        is_last = state.step == settings.num_updates
        if is_last or state.step % (settings.heldout_every * settings.updates_per_rollout) == 0:
            taught.sampler.load_weights((), version=state.step)
            figures = _heldout_figures(taught, settings, "heldout", run)
            metrics |= figures
            state.scalars |= figures
        run.step(state.step, metrics, save=state.save, save_every_s=settings.save_every_s)

    drop_damaged(folder, purpose)
    checkpoint.write(model, run.folder, like=inputs["model"], served_as=inputs["model"])
    return {**state.scalars, "rollouts": settings.num_rollouts}


# --- set-up ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Taught:
    """The model that learns, what it is judged beside, and what it is asked."""

    model: Decoder
    reference: Decoder | None
    sampler: Sampler  # decodes with the model's own weights
    format: ChatFormat
    problems: list[Problem]
    heldout: list[Problem]


def _taught(settings: RlSettings, inputs: Mapping[str, Path], run: StageRun) -> _Taught:
    """Load what takes part; raise where a problem does not fit the model, or the disk a state."""
    model = checkpoint.load(inputs["model"], device=run.device)
    tokenizer = Tokenizer.from_folder(inputs["model"])
    checkpoint.check_tokenizer(tokenizer, model.config)
    format = require_chat_format(inputs["model"], tokenizer)
    say(f"rl: {manner(format)}")
    problems, heldout = _problems(settings, inputs.get("problems"), run.seed)
    for problem, mode in itertools.product((*problems, *heldout), format.modes):
        prompt = chat_prompt(format, problem, mode)
        _check_length(prompt, settings, model.config.max_position_embeddings)
    artifact.require_disk(run.folder, kept_bytes(model.config, settings.update, LoraSettings()))
    reference = copy.deepcopy(model).requires_grad_(False) if settings.kl_coef else None
    sampler = Engine(model, max_batch=settings.max_batch)
    return _Taught(model, reference, sampler, format, problems, heldout)


def _problems(
    settings: RlSettings, file: Path | None, seed: int
) -> tuple[list[Problem], list[Problem]]:
    """Return the problems to train on and those held out."""
    if file is None:
        return (
            load_problems(settings.task, settings.num_problems, seed=seed, split="train"),
            load_problems(
                settings.task,
                settings.heldout_problems,
                seed=seed,
                split="heldout",
                setting="heldout_problems",
            ),
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


# --- sampling ------------------------------------------------------------------------------------


def _sampling_report(run: StageRun, what: str, total: int) -> Callable[[int, int], None]:
    """Return what tells of answers while they are sampled, from now on; a second stop ends it."""
    started = time.monotonic()

    def report(num_ended: int, num_tokens: int) -> None:
        run.check_sooner()
        seconds = max(time.monotonic() - started, 1e-9)
        rate = f"{num_tokens / seconds:,.0f} tokens/s"
        left = seconds / max(num_ended, 1) * (total - num_ended)
        eta = f"eta {format_seconds(left)}" if 0 < num_ended < total else ""
        eta = "done" if num_ended == total else eta
        run.progress.within(f"{what} {num_ended}/{total} answers  {rate}  {eta}".rstrip())

    return report


def _sampled(taught: _Taught, settings: RlSettings, step: int, run: StageRun) -> list[Row]:
    """Return a new rollout, with what an update reads of it."""
    taught.sampler.load_weights((), version=step)
    total = settings.prompts_per_rollout * settings.group_size
    rows = roll_out(
        taught.sampler,
        taught.format,
        taught.problems,
        settings,
        run.seed,
        step // settings.updates_per_rollout,
        _sampling_report(run, "sampling", total),
    )
    return with_logprobs(rows, taught.model, taught.reference, settings, run.dtype)


def _heldout_figures(
    taught: _Taught, settings: RlSettings, prefix: str, run: StageRun
) -> dict[str, float]:
    """Return the mean reward of greedy answers to the held-out problems, by mode."""
    figures = {}
    for mode in taught.format.modes if taught.heldout else ():
        prompts = [chat_prompt(taught.format, problem, mode) for problem in taught.heldout]
        rows = answer(
            taught.sampler,
            taught.format.tokenizer,
            prompts,
            Sampling(max_tokens=settings.max_tokens),
            on_token=_sampling_report(run, f"held-out {mode}", len(prompts)),
        )
        figures[f"{prefix}_reward_{mode}"] = sum(row.reward for row in rows) / len(rows)
        figures[f"{prefix}_tokens_{mode}"] = sum(len(row.token_ids) for row in rows) / len(rows)
    return figures
