"""The eval stage: how good a checkpoint is, alone and beside its parent."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from fretsaw.artifact import write_json
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.engine.engine import Engine, Request
from fretsaw.eval.settings import EvalSettings
from fretsaw.model.decoder import Decoder
from fretsaw.stage import StageRun
from fretsaw.tasks.word_problems import WordProblems, accuracy_interval
from fretsaw.tokenizer import Tokenizer
from fretsaw.training.losses import kl_from_log_probs

RESULTS = "results.json"


def evaluate(settings: EvalSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write `results.json`; the parent, where given, is graded on the same text and problems."""
    models = {"child": checkpoint.load(inputs["model"], device=run.device)}
    if "parent" in inputs:
        models["parent"] = checkpoint.load(inputs["parent"], device=run.device)
    results: dict[str, Any] = {}
    if "corpus" in inputs:
        heldout = inputs["corpus"] / "heldout.npy"
        rows = torch.from_numpy(loader.first_rows(heldout, settings.seq_len, settings.tokens))
        results |= text_figures(models, rows.to(run.device), settings.batch_rows, run)
    if settings.task == "word_problems":
        tokenizer = Tokenizer.from_folder(inputs["model"])
        results["task"] = {
            name: task_figures(model, tokenizer, settings, run, name)
            for name, model in models.items()
        }
        if len(models) == 2:
            results["task_kept"] = kept_accuracy(results["task"])
    write_json(run.folder / RESULTS, results)
    return {name: value for name, value in results.items() if isinstance(value, float)}


@torch.inference_mode()
def text_figures(
    models: Mapping[str, Decoder], rows: Int[Tensor, "rows seq_plus_1"], batch: int, run: StageRun
) -> dict[str, float]:
    """Return loss and perplexity of each model, KL from the parent, and top-1 agreement with it."""
    sums: dict[str, float] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + value.double().sum().item()

    run.progress.start("held-out text", len(rows), unit="row")
    for at in range(0, len(rows), batch):
        token_ids, targets = rows[at : at + batch, :-1], rows[at : at + batch, 1:]
        log_probs = {n: m(token_ids).float().log_softmax(-1) for n, m in models.items()}
        for name, values in log_probs.items():
            add(
                f"{name}_loss",
                F.nll_loss(values.flatten(0, 1), targets.flatten(), reduction="none"),
            )
        if "parent" in log_probs:
            parent, child = log_probs["parent"], log_probs["child"]
            add("kl", kl_from_log_probs(parent.flatten(0, 1), child.flatten(0, 1)))
            add("top1_agreement", parent.argmax(-1) == child.argmax(-1))
        run.step(min(at + batch, len(rows)), row=False)
    num_tokens = rows[:, 1:].numel()
    figures = {name: value / num_tokens for name, value in sums.items()}
    losses = [name for name in figures if name.endswith("_loss")]
    return figures | {
        f"{name.removesuffix('_loss')}_perplexity": math.exp(figures[name]) for name in losses
    }


def task_figures(
    model: Decoder, tokenizer: Tokenizer, settings: EvalSettings, run: StageRun, name: str
) -> dict[str, Any]:
    """Return greedy accuracy with its 95 % interval, by mode and by number of steps."""
    figures: dict[str, Any] = {}
    engine = Engine(model, max_batch=128)
    for mode in ("on", "off"):
        task = WordProblems(settings.num_problems, run.seed, mode=mode)
        bos = tokenizer.bos_token_id
        first = () if bos is None else (bos,)
        stop = tuple({*first, *model.config.eos_token_ids})  # documents follow one another
        requests = [
            Request(
                (*first, *tokenizer.encode(prompt)), settings.max_new_tokens, stop_token_ids=stop
            )
            for prompt in task.prompts()
        ]
        generated: list[list[int]] = [[] for _ in requests]
        run.progress.start(f"{name} {mode}", len(requests), unit="problem")
        num_done = 0
        for event in engine.generate(requests):
            if event.token_id not in stop:
                generated[event.request].append(event.token_id)
            if event.finish_reason:
                num_done += 1
                run.step(num_done, row=False)
        grades = [task.grade(i, tokenizer.decode(ids)) for i, ids in enumerate(generated)]
        by_steps: dict[int, list[float]] = {}
        for i, grade in enumerate(grades):
            by_steps.setdefault(task.num_steps(i), []).append(grade)
        low, high = accuracy_interval(int(sum(grades)), len(grades))
        figures[mode] = {
            "accuracy": sum(grades) / len(grades),
            "interval": [low, high],
            "by_steps": {str(n): sum(g) / len(g) for n, g in sorted(by_steps.items())},
            "tokens_per_answer": sum(map(len, generated)) / len(generated),
            "grades": grades,
        }
    return figures


def kept_accuracy(task: Mapping[str, Any], *, num_resamples: int = 2000) -> dict[str, Any]:
    """Return child / parent accuracy with thought, and its 95 % interval over problems."""
    child = torch.tensor(task["child"]["on"]["grades"], dtype=torch.float64)
    parent = torch.tensor(task["parent"]["on"]["grades"], dtype=torch.float64)
    if parent.sum() == 0:
        return {"kept": None, "interval": None}
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(child), (num_resamples, len(child)), generator=generator)
    ratios = child[drawn].sum(1) / parent[drawn].sum(1).clamp(min=1)
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"kept": (child.sum() / parent.sum()).item(), "interval": [low, high]}
