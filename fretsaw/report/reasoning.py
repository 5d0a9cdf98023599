"""What tuning and reinforcement made of the child: the figures of the page's second half."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fretsaw.chat.reasoning import MODES, split_reasoning
from fretsaw.report.stage_files import read_json, read_metrics
from fretsaw.rollout.rows import Row, read_rows
from fretsaw.stage import artifact

MAX_TRANSCRIPTS = 3


@dataclass(frozen=True)
class ModelRow:
    """One model's line in the table: figures by mode."""

    name: str
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Transcript:
    """One question, answered with reasoning on and off."""

    on: Row
    off: Row

    @property
    def reasoning(self) -> str:
        """What stands between the tags."""
        return split_reasoning(self.on.completion)[0] or ""

    @property
    def answer(self) -> str:
        """What follows them."""
        return split_reasoning(self.on.completion)[1]


@dataclass(frozen=True)
class Reasoning:
    """All that the page says of a chat model; empty where there is none."""

    tables: Mapping[str, Sequence[ModelRow]] = field(default_factory=dict)  # task -> models
    sampled: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    heldout: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    transcripts: Sequence[Transcript] = ()


def read_reasoning(inputs: Mapping[str, Path], results: Mapping[str, Any]) -> Reasoning:
    """Read what the optional inputs hold; `results` are those of parent and child."""
    if "tuned_eval" not in inputs:
        return Reasoning()
    evaluated = {"child": results}
    for name, key in (("tuned", "tuned_eval"), ("reinforced", "reasoner_eval")):
        if key in inputs:
            evaluated[name] = read_json(inputs[key] / "results.json", dict)
    tables: dict[str, list[ModelRow]] = {}
    for name, own in evaluated.items():
        for task, figures in own.get("tasks", {}).items():
            rows = tables.setdefault(task, [])
            if "parent" in figures:
                rows.append(ModelRow("parent", figures["parent"]))
            rows.append(ModelRow(name, figures["child"]))
    last = inputs.get("reasoner_eval", inputs["tuned_eval"])
    sampled, heldout = read_curve(inputs["reasoner"]) if "reasoner" in inputs else ({}, {})
    return Reasoning(
        tables=tables,
        sampled=sampled,
        heldout=heldout,
        transcripts=choose_transcripts(read_rows(last / "answers-child-0.parquet")),
    )


def read_curve(
    folder: Path,
) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, float]]]]:
    """Return (rollout, reward) of sampled and of held-out answers, by mode."""
    manifest = artifact.read_manifest(folder)
    updates = manifest["settings"]["updates_per_rollout"]
    rows = read_metrics(folder)
    sampled: dict[str, list[tuple[int, float]]] = {}
    heldout: dict[str, list[tuple[int, float]]] = {}
    for mode in MODES:
        before = manifest["metrics"].get(f"before_reward_{mode}")
        if before is not None:
            heldout[mode] = [(0, before)]
        for row in rows:
            rollout = -(-row["step"] // updates)
            for points, key in ((sampled, f"reward_{mode}"), (heldout, f"heldout_reward_{mode}")):
                if key in row:
                    points.setdefault(mode, []).append((rollout, row[key]))
    return sampled, heldout


def choose_transcripts(rows: Sequence[Row]) -> list[Transcript]:
    """Return a few problems in both modes: one of each kind, from the longest kind down.

    Within a kind it is the first problem, whatever became of it.
    """
    pairs: dict[int, dict[str, Row]] = {}
    for row in rows:
        if row.index == 0:
            pairs.setdefault(row.group, {})[row.mode] = row
    by_kind: dict[str, dict[str, Row]] = {}
    for pair in pairs.values():
        if pair.keys() == {"on", "off"}:
            by_kind.setdefault(pair["on"].kind, pair)
    chosen = list(by_kind.values())[-MAX_TRANSCRIPTS:]
    return [Transcript(p["on"], p["off"]) for p in chosen]
