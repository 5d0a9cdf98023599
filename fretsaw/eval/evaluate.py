"""The eval stage: how good a model is, alone and beside its parent, reasoning on and off."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fretsaw.chat.reasoning import MODES, Mode, without_reasoning
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.client.judge import Judge
from fretsaw.data import loader
from fretsaw.data.by_source import source_names
from fretsaw.engine.sampling import Sampling
from fretsaw.eval.likelihood import choice_answers
from fretsaw.eval.local import LocalModel
from fretsaw.eval.served import ServedModel
from fretsaw.eval.settings import EvalSettings
from fretsaw.eval.task_figures import kept_accuracy, own_figures, task_figures
from fretsaw.eval.text_figures import text_figures
from fretsaw.grade.grader import GRADERS
from fretsaw.grade.killable import named
from fretsaw.rollout.rows import DamagedRows, Row, read_rows, write_rows
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.stage.text_table import aligned
from fretsaw.stage.whole import write_json
from fretsaw.tasks.task import AskedTask, asked_tasks, drawn_with

RESULTS = "results.json"
FAULTS = ("truncated", "format_faults", "failed", "no_verdict")  # shares of the answers
AT_ONCE = 512  # answers that are kept together, and asked for again where a run is stopped

Model = LocalModel | ServedModel


def evaluate(settings: EvalSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write `results.json`; the parent, where given, is graded on the same text and problems."""
    files = {name: path for name, path in inputs.items() if name.startswith("problems")}
    tasks = asked_tasks(
        settings.task, files, settings.num_problems, limit=settings.limit, seed=run.seed
    )
    models = open_models(settings, inputs, run, tasks)
    results = held_out_text(settings, inputs, models, run) if "corpus" in inputs else {}
    metrics = {name: value for name, value in results.items() if isinstance(value, float)}
    results["tasks"] = {}
    for number, task in enumerate(tasks):
        figures = results["tasks"][task.name] = {}
        for name, model in models.items():
            answers = answers_to(task, model, f"{name}-{number}", settings, run)
            write_rows(run.folder / f"answers-{name}-{number}.parquet", answers)
            figures[name] = task_figures(answers)
            for mode in figures[name].keys() & {*MODES} if task.figures else ():
                own = [row for row in answers if row.mode == mode]
                figures[name][mode] |= own_figures(own, named(task.figures))
        if len(models) == 2:
            figures["kept"] = kept_accuracy(figures)
        if number == 0:
            own = figures["child"]
            scores = {m: own[m]["accuracy"] for m in MODES if m in own}
            metrics |= {f"accuracy_{m}": score for m, score in scores.items() if score is not None}
    write_json(run.folder / RESULTS, results)
    for line in shown(results["tasks"]):
        say(line)
    return metrics


# --- its steps ------------------------------------------------------------------------------------


def open_models(
    settings: EvalSettings, inputs: Mapping[str, Path], run: StageRun, tasks: list[AskedTask]
) -> dict[str, Model]:
    """Return the model, and its parent where there is one, and say how problems are put to them.

    Raises `ValueError` for a model that is neither a checkpoint nor at a URL, or both.
    """
    if bool(settings.url) == ("model" in inputs):
        given = f"{inputs['model']} and {settings.url}" if settings.url else "none"
        raise ValueError(f"eval: model is {given}; give one checkpoint, or one server's URL")
    judged = [
        task.name for task in tasks if any(GRADERS[p.grader].is_judged for p in task.problems)
    ]
    if judged and not settings.judge.judge_url:
        raise ValueError(f"task {judged[0]!r}: is graded by a model; give --judge-url")
    models: dict[str, Model] = {}
    asked = run.resume_folder / "judged"
    judge = Judge(settings.judge, asked) if settings.judge.judge_url else None
    if settings.url:
        if "corpus" in inputs or "parent" in inputs:
            raise ValueError(
                f"eval: {settings.url} with a corpus or a parent; a server gives no logits to "
                "compare, so leave them out or name the checkpoint"
            )
        models["child"] = ServedModel(settings, run.resume_folder / "asked", judge)
    else:
        weights = None if settings.weights == "auto" else settings.weights
        child = checkpoint.load_served(inputs["model"], device=run.device, weights=weights)
        models["child"] = LocalModel(child, inputs["model"], judge)
        if "parent" in inputs:
            parent = checkpoint.load_served(inputs["parent"], device=run.device)
            models["parent"] = LocalModel(parent, inputs["parent"], judge)
    for name, model in models.items() if tasks else ():
        say(f"eval: {name}: {model.manner}")
    return models


def held_out_text(
    settings: EvalSettings,
    inputs: Mapping[str, Path],
    models: Mapping[str, Model],
    run: StageRun,
) -> dict[str, Any]:
    """Return the figures of a corpus's held-out text, and of each of its sources."""
    corpus = inputs["corpus"]
    rows = loader.first_rows(corpus / "heldout.npy", settings.seq_len, settings.tokens)
    names, sources = source_names(corpus), None
    if names:
        sources = torch.from_numpy(loader.source_rows(corpus, settings.seq_len, len(rows)))
    decoders = {n: model.decoder for n, model in models.items() if isinstance(model, LocalModel)}
    read = torch.from_numpy(rows).to(run.device)
    whole, *parts = text_figures(decoders, read, settings.batch_rows, run, sources)
    by_source = {name: own for name, own in zip(names, parts, strict=False) if own}
    return {**whole, "by_source": by_source}


def answers_to(
    task: AskedTask, model: Model, name: str, settings: EvalSettings, run: StageRun
) -> list[Row]:
    """Return a model's graded answers to a task, mode by mode; those that are kept stay."""
    if task.by:
        return choice_answers(model, task, name, run)
    answers: list[Row] = []
    modes: list[Mode] = [mode for mode in model.modes if settings.modes in ("both", mode)]
    if not modes:
        raise ValueError(
            f"modes: {settings.modes!r}, but the model has {' and '.join(model.modes)} only"
        )
    for mode in modes:
        sampling = drawn_with(
            task.sampling[mode],
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_new_tokens,
        )
        answers += _answers_in(task, model, mode, sampling, name, settings, run)
    return answers


def shown(tasks: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table: every task by model and mode, and what its score cost."""
    rows = [
        {
            "task": task,
            "model": name,
            "reasoning": mode,
            "score": _share(own["accuracy"]),
            "95 %": " to ".join(map(_share, own["interval"] or (None, None))),
            "tokens": f"{own['tokens_per_answer']:,.0f}",
            **{what.replace("_", " "): _share(own[what]) for what in FAULTS},
        }
        for task, models in tasks.items()
        for name, modes in models.items()
        for mode, own in modes.items()
        if mode in MODES
    ]
    return list(aligned(rows)) if rows else []


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _answers_in(
    task: AskedTask,
    model: Model,
    mode: Mode,
    sampling: Sampling,
    name: str,
    settings: EvalSettings,
    run: StageRun,
    first_group: int = 0,
) -> list[Row]:
    """Return the answers in one mode, a part of the problems at a time; each part is kept.

    What is asked after an answer follows on the first of its samples.
    """
    num_samples = settings.samples if sampling.temperature else 1  # greedy ones are all the same
    problems, size = task.problems, max(1, AT_ONCE // num_samples)
    run.progress.start(f"{name} {mode}", len(problems) * num_samples, unit="answer")
    answers: list[Row] = []
    for first in range(0, len(problems), size):
        path = run.resume_folder / f"{name}-{mode}-{first}.parquet"
        own = _kept(path)
        if own is None:
            before = len(answers)
            own = model.answers(
                problems[first : first + size],
                mode,
                replace(sampling, seed=run.seed),
                num_samples=num_samples,
                first_group=first_group + first,
                on_answer=lambda ended, before=before: run.step(before + ended, row=False),
            )
            write_rows(path, own)
        answers += own
        run.step(len(answers), row=False)
    firsts = [without_reasoning(row.completion) for row in answers if row.index == 0]
    followed = [p.followed(text) for p, text in zip(problems, firsts, strict=True)]
    if next_problems := [problem for problem in followed if problem is not None]:
        more = replace(task, problems=next_problems)
        at = first_group + len(problems)
        answers += _answers_in(more, model, mode, sampling, f"{name}-then", settings, run, at)
    return answers


def _kept(path: Path) -> list[Row] | None:
    """Return a part's answers where they are kept whole."""
    try:
        return read_rows(path) if path.is_file() else None
    except DamagedRows:
        return None
