"""The eval stage: how good a checkpoint is, alone and beside its parent, reasoning on and off."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from fretsaw.chat.format import chat_format
from fretsaw.chat.reasoning import MODES
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.data.by_source import source_names
from fretsaw.engine.engine import Engine
from fretsaw.eval.intervals import bootstrap, bootstrap_ratio, wilson
from fretsaw.eval.settings import EvalSettings
from fretsaw.model.decoder import Decoder
from fretsaw.rollout.rows import Row, write_rows
from fretsaw.rollout.sampler import Sampler
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.stage.whole import write_json
from fretsaw.tasks.answers import answer
from fretsaw.tasks.problem import Problem
from fretsaw.tasks.prompt import Prompt, manner, prompts_by_mode
from fretsaw.tasks.task import load_problems
from fretsaw.training.losses import kl_from_log_probs
from fretsaw.training.settings import MAX_LOGITS

RESULTS = "results.json"
MAX_BATCH = 128


def evaluate(settings: EvalSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write `results.json`; the parent, where given, is graded on the same text and problems."""
    folders = {"child": inputs["model"]}
    if "parent" in inputs:
        folders["parent"] = inputs["parent"]
    weights = None if settings.weights == "auto" else settings.weights
    models = {"child": checkpoint.load_served(inputs["model"], device=run.device, weights=weights)}
    if "parent" in inputs:
        models["parent"] = checkpoint.load_served(inputs["parent"], device=run.device)
    results: dict[str, Any] = {}
    if "corpus" in inputs:
        heldout = inputs["corpus"] / "heldout.npy"
        rows = torch.from_numpy(loader.first_rows(heldout, settings.seq_len, settings.tokens))
        names, sources = source_names(inputs["corpus"]), None
        if names:
            sources = torch.from_numpy(
                loader.source_rows(inputs["corpus"], settings.seq_len, len(rows))
            )
        rows = rows.to(run.device)
        whole, *parts = text_figures(models, rows, settings.batch_rows, run, sources)
        by_source = {name: own for name, own in zip(names, parts, strict=False) if own}
        results |= {**whole, "by_source": by_source}
    metrics = {name: value for name, value in results.items() if isinstance(value, float)}
    tasks = tasks_of(settings, inputs.get("problems"), run.seed)
    results["tasks"] = {}
    for number, (task, problems) in enumerate(tasks.items()):
        figures = results["tasks"][task] = {}
        for name, model in models.items():
            tokenizer = Tokenizer.from_folder(folders[name])
            format = chat_format(folders[name], tokenizer)
            if number == 0:
                say(f"eval: {name}: {manner(format)}")
            prompts = prompts_by_mode(problems, tokenizer, format)
            answers: list[Row] = []
            for mode in prompts:
                total = len(problems) * settings.samples
                run.progress.start(f"{name} {mode}", total, unit="answer")
                sampler = Engine(model, max_batch=MAX_BATCH)
                answers += put(prompts[mode], sampler, tokenizer, settings, run)
            write_rows(run.folder / f"answers-{name}-{number}.parquet", answers)
            figures[name] = task_figures(answers, settings.samples)
        if len(models) == 2:
            figures["kept"] = kept_accuracy(figures)
        if number == 0:
            own = figures["child"]
            metrics |= {f"accuracy_{mode}": own[mode]["accuracy"] for mode in MODES if mode in own}
    write_json(run.folder / RESULTS, results)
    return metrics


def tasks_of(settings: EvalSettings, file: Path | None, seed: int) -> dict[str, list[Problem]]:
    """Return the problems of every task that is named, and of the user's own file."""
    names = [name.strip() for name in settings.task.split(" + ") if name.strip()]
    tasks = {name: load_problems(name, settings.num_problems, seed=seed) for name in names}
    if file is not None:
        tasks[file.name] = load_problems("", 0, seed=seed, file=file)
    return tasks


@torch.inference_mode()
def text_figures(
    models: Mapping[str, Decoder],
    rows: Int[Tensor, "rows seq_plus_1"],
    batch: int,
    run: StageRun,
    sources: Int[Tensor, "rows seq"] | None = None,
) -> list[dict[str, float]]:
    """Return loss and perplexity of each model, KL from the parent, and top-1 agreement with it.

    First those of all targets, then those of each source that `sources` numbers.
    """
    of_target = torch.zeros_like(rows[:, 1:]) if sources is None else sources
    num_sources = int(of_target.max()) + 1
    size = max(1, MAX_LOGITS // max(model.config.vocab_size for model in models.values()))
    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor, of: Tensor) -> None:
        total = torch.bincount(of, weights=value.flatten().double().cpu(), minlength=num_sources)
        sums[name] = sums[name] + total if name in sums else total

    run.progress.start("held-out text", len(rows), unit="row")
    for at in range(0, len(rows), batch):
        token_ids, targets = rows[at : at + batch, :-1], rows[at : at + batch, 1:].flatten()
        of = of_target[at : at + batch].flatten().cpu()
        hidden = {name: m.hidden_states(token_ids).flatten(0, 1) for name, m in models.items()}
        for some in torch.arange(len(targets)).split(size):  # logits of all would be the largest
            logits = {n: F.linear(hidden[n][some], m.head_weight) for n, m in models.items()}
            log_probs = {name: values.float().log_softmax(-1) for name, values in logits.items()}
            add("tokens", torch.ones(len(some)), of[some])
            for name, values in log_probs.items():
                add(f"{name}_loss", F.nll_loss(values, targets[some], reduction="none"), of[some])
            if "parent" in log_probs:
                parent, child = log_probs["parent"], log_probs["child"]
                add("kl", kl_from_log_probs(parent, child), of[some])
                add("top1_agreement", parent.argmax(-1) == child.argmax(-1), of[some])
        run.step(min(at + batch, len(rows)), row=False)
    parts = [{name: value.sum().item() for name, value in sums.items()}]
    if sources is not None:
        parts += [{n: value[i].item() for n, value in sums.items()} for i in range(num_sources)]
    return [_means(own) for own in parts]


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Return sums over tokens as figures of one; nothing where there are no tokens."""
    if not sums["tokens"]:
        return {}
    own = {name: value / sums["tokens"] for name, value in sums.items() if name != "tokens"}
    losses = [name for name in own if name.endswith("_loss")]
    return own | {
        f"{name.removesuffix('_loss')}_perplexity": math.exp(own[name]) for name in losses
    }


def put(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    tokenizer: Tokenizer,
    settings: EvalSettings,
    run: StageRun,
) -> list[Row]:
    """Return graded answers to every prompt."""
    return answer(
        sampler,
        tokenizer,
        prompts,
        group_size=settings.samples,
        max_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=run.seed,
        on_token=lambda num_ended, num_tokens: run.step(num_ended, row=False),
    )


def task_figures(answers: Sequence[Row], samples: int) -> dict[str, Any]:
    """Return by mode asked for: accuracy, by kind, what it cost in tokens, and what went wrong.

    An answer counts as right where it is correct and finished; a faulty format is counted apart.
    One that failed counts as wrong, and as neither faulty nor truncated.
    `difference` is accuracy on minus off over the same problems, with its bootstrap interval.
    """
    figures: dict[str, Any] = {}
    for mode in dict.fromkeys(row.mode for row in answers):
        rows = [row for row in answers if row.mode == mode]
        by_problem: dict[int, list[Row]] = {}
        for row in rows:
            by_problem.setdefault(row.group, []).append(row)
        grades = [_accuracy(own) for own in by_problem.values()]
        kinds: dict[str, list[Row]] = {}
        for row in rows:
            kinds.setdefault(row.kind, []).append(row)
        tokens = [len(row.token_ids) for row in rows]
        made = [row for row in rows if row.error is None]
        figures[mode] = {
            "accuracy": _accuracy(rows),
            "interval": wilson(sum(grades), len(grades)) if samples == 1 else bootstrap(grades),
            "by_kind": {kind: _accuracy(own) for kind, own in kinds.items()},
            "tokens_per_answer": sum(tokens) / len(rows),
            "tokens_interval": bootstrap(tokens),
            "format_faults": sum(row.fault is not None for row in made) / len(rows),
            "truncated": sum(not row.is_finished for row in made) / len(rows),
            "failed": 1 - len(made) / len(rows),
            "grades": grades,
        }
    if figures.keys() == {*MODES}:
        paired = zip(figures["on"]["grades"], figures["off"]["grades"], strict=True)
        gains = [on - off for on, off in paired]
        figures["difference"] = {"gain": sum(gains) / len(gains), "interval": bootstrap(gains)}
    return figures


def _accuracy(rows: Sequence[Row]) -> float:
    return sum(row.correct * row.is_finished for row in rows) / len(rows)


def kept_accuracy(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return child / parent accuracy in a mode of both, on if they have it; and its 95 % interval.

    Nothing where the two are in no mode alike.
    """
    shared = [mode for mode in MODES if mode in task["child"] and mode in task["parent"]]
    if not shared:
        return {"kept": None, "interval": None}
    child, parent = (task[name][shared[0]]["grades"] for name in ("child", "parent"))
    if sum(parent) == 0:
        return {"kept": None, "interval": None}
    kept = sum(child) / sum(parent)
    return {"kept": kept, "interval": bootstrap_ratio(child, parent), "mode": shared[0]}
