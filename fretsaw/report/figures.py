"""What the report draws: findings in, figures out; None where there is nothing to show."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fretsaw.chat.reasoning import MODES
from fretsaw.report import plots
from fretsaw.report.model_card import PHASES, Findings
from fretsaw.report.reasoning import Reasoning
from fretsaw.scenario.scenario import Scenario

RANKING = "ranking.safetensors"


def draw_all(findings: Findings, inputs: Mapping[str, Path]) -> dict[str, str | None]:
    """Return every figure of the page by name."""
    return {
        "shapes": draw_shapes(findings),
        "importance": draw_importance(findings, inputs["ranking"]),
        "scores": draw_scores(findings),
        "errors": draw_errors(findings),
        "joint": draw_joint(findings),
        "correction": draw_correction(findings),
        "pareto": draw_pareto(findings),
        "fusion": draw_fusion(findings),
        "dependency": draw_dependency(findings),
        "costs": draw_costs(findings),
        "predicted": draw_predicted(findings),
        "healing": draw_healing(findings, inputs["child"]),
        "accuracy": draw_accuracy(findings.task),
        "throughput": draw_throughput(findings),
        "reinforcement": draw_reinforcement(findings.reasoning),
    }


def draw_shapes(findings: Findings) -> str:
    """Draw the per-layer picture."""
    parent, child = (
        [(block.num_key_value_heads, block.intermediate_size) for block in config.blocks]
        for config in (findings.parent, findings.assembled)
    )
    return plots.shapes(parent, child)


def draw_importance(findings: Findings, ranking: Path) -> str | None:
    """Draw how much of the FFN's contribution the kept channels carry; None without channels."""
    tensors = load_file(ranking / RANKING)
    kept, carried = [], []
    pairs = zip(findings.parent.blocks, findings.assembled.blocks, strict=True)
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
            kind: {name: entry["score"] for name, entry in entries.items()}
            for kind, entries in layer.items()
        }
        for layer in findings.scores["layers"]
    ]
    return plots.score_map(layers, findings.chosen)


def errors_of(findings: Findings) -> dict[tuple[int, str], dict[str, float]]:
    """Return how far an alternative is off at each stage of its making, by (layer, name).

    Block errors where `fretsaw bld` measured them, else the KL on the text that judged the repair.
    """
    found: dict[tuple[int, str], dict[str, float]] = {}
    for i, layer in enumerate(findings.trained.get("layers", [])):
        for entries in layer.values():
            for name, row in entries.items():
                stages = {stage: row[stage] for stage in plots.STAGES if stage in row}
                found[i, name] = {**stages, "trained": row[row["kept"]]}
    if found:
        return found
    for i, layer in enumerate(findings.scores["layers"]):
        for entries in layer.values():
            for name, entry in entries.items():
                if entry["repair"]:
                    repair = entry["repair"]
                    found[i, name] = {"plain": repair["kl_before"], "repaired": repair["kl_after"]}
    return found


def draw_errors(findings: Findings) -> str | None:
    """Draw the errors of every alternative before and after repair and training."""
    by_name: dict[str, list[dict[str, float]]] = {}
    for (_, name), stages in errors_of(findings).items():
        by_name.setdefault(name, []).append(stages)
    names = dict.fromkeys(name for name, _ in _alternatives(findings))
    shown = {name: by_name[name] for name in names if name in by_name}
    what = "held-out block error" if findings.trained else "KL, nats a token"
    return plots.errors(shown, what) if shown else None


def _alternatives(findings: Findings) -> Iterator[tuple[str, Any]]:
    """Yield every layer's scored alternatives, attention first."""
    layers: list[dict[str, dict[str, Any]]] = findings.scores["layers"]
    for kind in dict.fromkeys(kind for layer in layers for kind in layer):
        for layer in layers:
            yield from layer.get(kind, {}).items()


def draw_joint(findings: Findings) -> str | None:
    """Draw joint scores against sums; None where fewer than two pairs were scored."""
    pairs = [(pair["sum"], pair["joint"]) for pair in findings.scores.get("joint", [])]
    pairs = [pair for pair in pairs if min(pair) > 0]
    return plots.joint(pairs) if len(pairs) > 1 else None


def draw_correction(findings: Findings) -> str | None:
    """Draw the children that were measured whole; None where none was."""
    children = findings.correction.get("children")
    return plots.correction(children) if children else None


def draw_pareto(findings: Findings) -> str | None:
    """Draw the front; None where decoding has no predicted time."""
    parent_ms, child_ms = findings.decode_ms_searched
    points = [(s["costs"]["decode_ms"], s["score"]) for s in findings.front]
    front = [(parent_ms / ms, score) for ms, score in points if ms > 0]
    if child_ms <= 0 or len(front) < 2:
        return None
    wanted = [v.target.amount for v in findings.verdicts if v.target.quantity == "decode"]
    child = (parent_ms / child_ms, findings.score)
    is_benched = findings.served["scenario"] == findings.searched_at
    measured = findings.speed["decode"]["speedup"] if is_benched else None
    others = {
        row["method"]: (parent_ms / row["costs"]["decode_ms"], row["score"])
        for row in findings.baselines
        if row.get("costs", {}).get("decode_ms")
    }
    return plots.pareto(front, child, measured, others, max(wanted, default=None))


def draw_fusion(findings: Findings) -> str | None:
    """Draw what fusing saves against what it costs; None where there was nothing to choose."""
    front = [(one["saved_ms"], one["kl_sum"]) for one in findings.fusion.get("front", [])]
    if len(front) < 2:
        return None
    chosen = findings.fusion["chosen"]
    return plots.fusion(front, (chosen["saved_ms"], chosen["kl_sum"]), chosen["kl"])


def draw_dependency(findings: Findings) -> str | None:
    """Draw the block-dependency matrix, the fused groups framed; None where it was not made."""
    dependency = findings.fusion.get("dependency")
    if not dependency:
        return None
    bounds = (group.split("-") for group in findings.fusion["chosen"]["groups"])
    groups = [(int(first), int(last)) for first, last in bounds]
    return plots.dependency(dependency["matrix"], groups)


def draw_costs(findings: Findings) -> str:
    """Draw the cost bars, attention first, in the order of the scores; what is free is left out."""
    costs = findings.served["alternatives"]
    scored = dict.fromkeys(
        part
        for half in (0, -1)  # of a block such as gqa2+ffn192; a subblock has one name
        for name, _ in _alternatives(findings)
        if (part := name.split("+")[half])
    )
    attention_first = sorted(scored, key=lambda name: name.startswith("ffn"))
    shown = {n: costs[n] for n in attention_first if n in costs and not n.endswith("_none")}
    return plots.cost_bars(shown, findings.served["fixed"])


def draw_predicted(findings: Findings) -> str | None:
    """Draw how far predicted times are from measured ones, by scenario."""
    rows = {}
    for served in findings.costs["scenarios"]:
        bench = findings.speed if served is findings.served else {}
        rows[served["scenario"]] = {
            phase: {
                "errors": list(served["left_out_error"][phase + "_ms"].values()),
                "noise": served.get("noise_floor", {}).get(phase + "_ms", 0.0),
                "child": _bench_error(findings, phase) if phase in bench else None,
            }
            for phase in PHASES
        }
    if not any(phase["errors"] for row in rows.values() for phase in row.values()):
        return None
    return plots.predicted(rows)


def _bench_error(findings: Findings, phase: str) -> float | None:
    """Return how far the child's predicted speed-up is from the measured one, relative."""
    if phase not in findings.predicted:
        return None
    return abs(findings.predicted[phase] / findings.speed[phase]["speedup"] - 1)


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


def draw_throughput(findings: Findings) -> str | None:
    """Draw accuracy against answers a second, by model and mode; None without a task.

    Answers a second are the tokens/s that was measured of parent and child, decoding at the benched
    scenario, over the tokens that an answer takes; later models have the child's speed.
    """
    served = Scenario.parse(findings.speed["scenario"])
    tokens = served.batch * served.output_tokens
    decode = findings.speed["decode"]
    per_s = {who: 1e3 * tokens / decode[f"{who}_ms"] for who in ("parent", "child")}
    rows = next(iter(findings.reasoning.tables.values()), None)
    models = {row.name: row.figures for row in rows} if rows else findings.task
    points = {
        name: {
            mode: (
                per_s["parent" if name == "parent" else "child"] / own[mode]["tokens_per_answer"],
                own[mode]["accuracy"],
            )
            for mode in MODES
            if own[mode]["tokens_per_answer"]
        }
        for name, own in models.items()
        if set(MODES) <= own.keys()
    }
    return plots.throughput(points) if points else None


def draw_reinforcement(reasoning: Reasoning) -> str | None:
    """Draw the rewards of reinforcement; None where there was none."""
    if not reasoning.sampled:
        return None
    return plots.reinforcement(reasoning.sampled, reasoning.heldout)
