"""Rollouts of a run: sampled, judged within groups, and read back from their tables."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from fretsaw.chat.reasoning import MODES
from fretsaw.chat.renderer import ChatFormat
from fretsaw.data import loader
from fretsaw.model.decoder import Decoder
from fretsaw.rl.advantage import group_advantages
from fretsaw.rl.settings import RlSettings
from fretsaw.rl.update import answer_logprobs, is_used
from fretsaw.rollout.rows import DamagedRows, Row, read_rows
from fretsaw.rollout.sampler import Sampler
from fretsaw.stage.artifact import hash_path
from fretsaw.stage.execute import StageRun
from fretsaw.stage.hashes import hash_json
from fretsaw.stage.progress import say
from fretsaw.tasks.answers import answer
from fretsaw.tasks.problem import Problem
from fretsaw.tasks.prompt import chat_prompt


def purpose_of(settings: RlSettings, inputs: Mapping[str, Path], seed: int) -> str:
    """Return what tells the rollouts of a run from those of another."""
    by_hash = {name: hash_path(path) for name, path in inputs.items()}
    return hash_json([asdict(settings), by_hash, seed])


def read_rollout(
    path: Path, purpose: str, step: int, settings: RlSettings, run: StageRun
) -> list[Row] | None:
    """Return the stored rollout that the update after `step` reads, None where it is to be sampled.

    A table that is damaged, or of another run, is sampled again where no update has read it yet.
    Later that can't be, for the weights have moved on: raises ValueError with what to remove.
    """
    index, part = divmod(step, settings.updates_per_rollout)
    if not path.is_file():
        return None
    try:
        return read_rows(path, purpose=f"{purpose} {index}")
    except DamagedRows as error:
        if part == 0:
            say(f"rl: {error}: sampled again, for no update has read it yet")
            return None
        states = sorted(run.resume_folder.glob("step-*"))
        newer = [state for state in states if int(state.name[5:]) > step - part]
        remedy = "with it, to go on from the state before"
        if len(newer) == len(states):
            newer, remedy = [run.folder], "to start again"
        raise ValueError(
            f"{error}, which needs the weights before its first {part} of "
            f"{settings.updates_per_rollout} updates: remove {', '.join(map(str, newer))} {remedy}"
        ) from None


def drop_damaged(folder: Path, purpose: str) -> None:
    """Remove tables that are no longer what was sampled, and say so; their updates were made."""
    for path in sorted(folder.glob("*.parquet")):
        try:
            read_rows(path, purpose=f"{purpose} {int(path.stem)}")
        except DamagedRows as error:
            say(f"rl: {error}: its updates were made, but the record of them is lost; removed")
            path.unlink()


def roll_out(
    sampler: Sampler,
    format: ChatFormat,
    problems: Sequence[Problem],
    settings: RlSettings,
    seed: int,
    index: int,
    on_token: Callable[[int, int], None],
) -> list[Row]:
    """Sample the groups of one rollout, grade them, and set the advantages."""
    num_prompts, num_on = settings.prompts_per_rollout, settings.num_on
    drawn = loader.order(len(problems), num_prompts, seed=seed, step=index)
    # Modes are spread evenly through the batch, so that every update has its share of both.
    share = [i * num_on // num_prompts for i in range(num_prompts + 1)]
    modes = ["on" if after > before else "off" for before, after in itertools.pairwise(share)]
    prompts = [
        chat_prompt(format, problems[i], mode if mode in format.modes else format.modes[0])
        for i, mode in zip(drawn, modes, strict=True)
    ]
    rows = answer(
        sampler,
        format.tokenizer,
        prompts,
        replace(settings.sampling, seed=seed * 1_000_003 + index),
        group_size=settings.group_size,
        on_token=on_token,
    )
    shape = (num_prompts, settings.group_size)
    advantages = group_advantages(
        torch.tensor([row.reward for row in rows], dtype=torch.float64).view(shape),
        torch.tensor([row.is_finished for row in rows]).view(shape),
        normalise=settings.normalise_rewards,
    )
    values = advantages.flatten().tolist()
    return [
        replace(row, advantage=value if row.error is None else 0.0)
        for row, value in zip(rows, values, strict=True)
    ]


def with_logprobs(
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


def check_signal(rows: Sequence[Row], settings: RlSettings) -> None:
    """Refuse to start where no group of the first rollout has anything to prefer."""
    if any(row.advantage for row in rows):
        return
    num_groups = len(rows) // settings.group_size
    rows = [row for row in rows if row.error is None]
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
        f"rl: rewards are all equal within the first rollout's {num_groups} groups, "
        f"so there is nothing to learn ({n} answers: {num_right} right, {num_faulty} with a format "
        f"fault, {num_cut} cut at max_tokens); {remedy}"
    )


def rollout_figures(rows: Sequence[Row], group_size: int) -> dict[str, float]:
    """Return what a rollout says of itself, apart by mode where modes differ.

    Means are over the answers that did not fail.
    """

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    figures = {}
    groups = [rows[at : at + group_size] for at in range(0, len(rows), group_size)]
    num_asked, rows = len(rows), [row for row in rows if row.error is None]
    if len(rows) < num_asked:
        figures["failed"] = 1 - len(rows) / num_asked
    for mode in MODES:
        own = [row for row in rows if row.mode == mode]
        if own:
            figures[f"reward_{mode}"] = mean([row.reward for row in own])
            figures[f"tokens_{mode}"] = mean([len(row.token_ids) for row in own])
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
