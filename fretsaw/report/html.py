"""The report stage: one self-contained page and a model card from a finished compression.

It reads what the stages left and runs no model. A section whose figures are not there is left out.
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from safetensors.numpy import load_file

from fretsaw.artifact import write_text
from fretsaw.chat import MODES
from fretsaw.report import plots
from fretsaw.report.model_card import (
    Findings,
    Made,
    environment,
    model_card,
    read_findings,
)
from fretsaw.report.reasoning import Reasoning
from fretsaw.report.settings import ReportSettings
from fretsaw.stage import StageRun

PAGE, CARD = "report.html", "README.md"
RANKING = "ranking.safetensors"


def report(settings: ReportSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the page and the card."""
    findings = read_findings(inputs)
    page = render_page(settings.title, findings, inputs)
    write_text(run.folder / PAGE, page)
    write_text(run.folder / CARD, model_card(findings))
    return {"html_bytes": len(page.encode())}


def render_page(title: str, findings: Findings, inputs: Mapping[str, Path]) -> str:
    """Return the page; equal artifacts give equal bytes."""
    figures = {
        "shapes": draw_shapes(findings),
        "importance": draw_importance(findings, inputs["ranking"]),
        "scores": draw_scores(findings),
        "pareto": draw_pareto(findings),
        "costs": draw_costs(findings),
        "healing": draw_healing(findings, inputs["child"]),
        "accuracy": draw_accuracy(findings.task),
        "reinforcement": draw_reinforcement(findings.reasoning),
    }
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            title=title or f"{findings.parent_name}, {findings.target}",
            f=findings,
            figures={name: Markup(svg) for name, svg in figures.items() if svg},
            stages=stage_rows(findings.lineage),
            sources=[made for made in findings.lineage if made.manifest is None],
            run_name=_run_name(findings.lineage),
        )
    )


# --- figures --------------------------------------------------------------------------------------


def draw_shapes(findings: Findings) -> str:
    """Draw the per-layer picture."""
    parent, child = (
        [(block.num_key_value_heads, block.intermediate_size) for block in config.blocks]
        for config in (findings.parent, findings.child)
    )
    return plots.shapes(parent, child)


def draw_importance(findings: Findings, ranking: Path) -> str | None:
    """Draw how much of the FFN's contribution the kept channels carry; None without channels."""
    tensors = load_file(ranking / RANKING)
    kept, carried = [], []
    pairs = zip(findings.parent.blocks, findings.child.blocks, strict=True)
    for i, (before, after) in enumerate(pairs):
        channels = tensors.get(f"layers.{i}.channels")
        if channels is None or not channels.sum() or not before.intermediate_size:
            kept.append(0.0)
            carried.append(0.0)
            continue
        ranked = np.sort(channels.astype(np.float64))[::-1]
        kept.append(after.intermediate_size / before.intermediate_size)
        carried.append(float(ranked[: after.intermediate_size].sum() / ranked.sum()))
    return plots.importance(kept, carried) if any(kept) and min(kept) < 1 else None


def draw_scores(findings: Findings) -> str:
    """Draw the heat map."""
    layers = [
        {
            kind: {name: entry["score"] for name, entry in layer[kind].items()}
            for kind in ("attention", "ffn")
        }
        for layer in findings.scores["layers"]
    ]
    return plots.score_map(layers, findings.choices)


def draw_pareto(findings: Findings) -> str | None:
    """Draw the front; None where decoding has no predicted time."""
    parent_ms = findings.parent_costs["decode_ms"]
    points = [(s["costs"]["decode_ms"], s["score"]) for s in findings.front]
    front = [(parent_ms / ms, score) for ms, score in points if ms > 0]
    if "decode" not in findings.predicted or len(front) < 2:
        return None
    wanted = [v.target.amount for v in findings.verdicts if v.target.quantity == "decode"]
    child = (findings.predicted["decode"], findings.score)
    measured = findings.speed["decode"]["speedup"]
    return plots.pareto(front, child, measured, max(wanted, default=None))


def draw_costs(findings: Findings) -> str:
    """Draw the cost bars, attention first, in the order of the scores; what is free is left out."""
    layers = findings.scores["layers"]
    names = [name for k in ("attention", "ffn") for layer in layers for name in layer[k]]
    costs = findings.costs["alternatives"]
    ordered = [name for name in dict.fromkeys(names) if not name.endswith("_none")]
    return plots.cost_bars({name: costs[name] for name in ordered}, findings.costs["fixed"])


def draw_healing(findings: Findings, child: Path) -> str | None:
    """Draw the healing curve; None where distillation left no rows."""
    path = child / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    what = "kl" if any("kl" in row for row in rows) else "lm"
    key = "kl" if what == "kl" else "loss"
    training = [(row["step"], row[what]) for row in rows if what in row]
    if not training:
        return None
    metrics = findings.healing
    measured = [row for row in rows if f"heldout_{key}" in row]
    heldout = [(row["step"], row[f"heldout_{key}"]) for row in measured]
    if f"before_{key}" in metrics:
        heldout.insert(0, (0, metrics[f"before_{key}"]))
    kept = metrics.get("best_step", 0)
    best = next((point for point in heldout if point[0] == kept), None)
    return plots.healing(training, heldout, best, "KL" if what == "kl" else "loss")


def draw_accuracy(task: Mapping[str, Any]) -> str | None:
    """Draw task accuracy by kind of problem; None without a task."""
    models = {name: task[name] for name in ("parent", "child") if name in task}
    if not models:
        return None
    return plots.accuracy(
        {mode: {n: own[mode]["by_kind"] for n, own in models.items()} for mode in MODES}
    )


def draw_reinforcement(reasoning: Reasoning) -> str | None:
    """Draw the rewards of reinforcement; None where there was none."""
    if not reasoning.sampled:
        return None
    return plots.reinforcement(reasoning.sampled, reasoning.heldout)


# --- how it was made ------------------------------------------------------------------------------


def stage_rows(lineage: list[Made]) -> list[dict[str, Any]]:
    """Return what the page says of each stage, with the command that makes it again."""
    folders = [made.folder for made in lineage if made.manifest]
    # Recorded paths are shown from the folder the stages share: where that lies is nobody's affair.
    root = Path(os.path.commonpath(folders)) if len(folders) > 1 else folders[0].parent
    return [
        {
            "name": _shown(made.folder, root),
            "hash": made.digest,
            "manifest": made.manifest,
            "settings": flat(made.manifest["settings"]),
            "command": command(made, root),
        }
        for made in lineage
        if made.manifest
    ]


def command(made: Made, root: Path) -> str:
    """Return the command line that makes an artifact again, every setting said."""
    assert made.manifest is not None, "what came from outside has no command"
    manifest, words = made.manifest, ["fretsaw", made.manifest["stage"]]
    data = [_shown(Path(e["path"]), root) for n, e in manifest["inputs"].items() if n[:4] == "data"]
    settings = flat(manifest["settings"])
    for name, entry in manifest["inputs"].items():
        if name == "problems":
            settings["task"] = _shown(Path(entry["path"]), root)
        elif name[:4] != "data":
            words += [f"--{name.replace('_', '-')}", _shown(Path(entry["path"]), root)]
    words += ["--data", *data] if data else []
    for key, value in settings.items():
        words += [f"--{key.rpartition('.')[2].replace('_', '-')}", str(value)]
    words += ["--seed", str(manifest["seed"])]
    for key in ("device", "dtype"):
        words += [f"--{key}", manifest["run"][key]] if key in manifest["run"] else []
    return shlex.join([*words, "--out", _shown(made.folder, root)])


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        nested = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        values |= nested if nested is not None else {f"{prefix}{key}": value}
    return values


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def _run_name(lineage: list[Made]) -> str | None:
    """Return the recipe the stages were made by, where their run says so."""
    for made in lineage:
        for folder in list(made.folder.parents)[:2] if made.manifest else ():
            if (folder / "run.json").is_file():
                name = json.loads((folder / "run.json").read_text())["name"]
                return " ".join(word.rpartition("/")[2] for word in name.split())
    return None
