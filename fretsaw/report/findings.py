"""What a finished compression left on disk, read once; the page and the card are views of it.

Nothing here runs a model or imports torch: sizes follow from the configs, speeds and losses from
the stages' JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fretsaw.chat.reasoning import Mode
from fretsaw.checkpoint.decilm import MODEL_TYPE as DECILM
from fretsaw.checkpoint.folder import read_served_config
from fretsaw.model.config import ModelConfig
from fretsaw.model.size import num_params
from fretsaw.model.subblock import names_of
from fretsaw.report.eight_bits import InEightBits, read_in_8_bits
from fretsaw.report.lineage import Made, read_lineage
from fretsaw.report.parent import read_licence, read_parent_name
from fretsaw.report.reasoning import Reasoning, read_reasoning
from fretsaw.report.stage_files import read_json, read_json_if_there, read_metrics
from fretsaw.report.verdict import Verdict, decide
from fretsaw.scenario.target import parse_targets
from fretsaw.stage import artifact

PHASES = ("prefill", "decode")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything a finished compression says of itself."""

    parent_name: str
    parent: ModelConfig
    child: ModelConfig
    assembled: ModelConfig  # the child with a layer for each of the parent's: before any fusion
    is_decilm: bool
    licence: dict[str, str]
    ranking: dict[str, np.ndarray]  # `ranking.safetensors`
    table: dict[str, Any]
    scores: dict[str, Any]
    costs: dict[str, Any]
    target: str
    searched_at: str  # the scenario of the front and of the other searches
    front: list[dict[str, Any]]
    baselines: list[dict[str, Any]]  # what the other searches find under the same bounds
    trained: dict[str, Any]  # `bld.json`; empty where no alternative was trained
    correction: dict[str, Any]  # `correction.json`; empty where no child was measured whole
    fused: tuple[str, ...]  # layers that the search itself fuses, such as "3-5"
    fusion: dict[str, Any]  # `fusion.json`, its dependency matrix with it; empty without fusion
    candidates: dict[str, Any]  # `chosen.json`; empty where one solution was assembled
    healing: dict[str, Any]  # the metrics of distillation's manifest
    healing_rows: list[dict[str, Any]]  # what it logged by step
    results: dict[str, Any]
    in_8_bits: list[InEightBits]
    speed: dict[str, Any]
    lineage: list[Made]
    reasoning: Reasoning

    @cached_property
    def choices(self) -> list[tuple[str, str]]:
        """The child's [attention, ffn] by the parent's layer."""
        return _choices_of(self.assembled)

    @cached_property
    def chosen(self) -> list[tuple[str, ...]]:
        """The same as the table names them: where it scores whole blocks, one name a layer."""
        pairs = zip(self.table["layers"], self.choices, strict=True)
        return [("+".join(names),) if "block" in layer else names for layer, names in pairs]

    @cached_property
    def scored(self) -> dict[str, list[str]]:
        """The names of all alternatives that were scored, by subblock, or by "block"."""
        layers: list[dict[str, dict[str, Any]]] = self.scores["layers"]
        return {
            kind: list(dict.fromkeys(name for layer in layers for name in layer.get(kind, {})))
            for kind in dict.fromkeys(kind for layer in layers for kind in layer)
        }

    @cached_property
    def served(self) -> dict[str, Any]:
        """The costs at the scenario that was benched, or else at the first."""
        return self._costs_at(self.speed["scenario"])

    @cached_property
    def child_costs(self) -> dict[str, float]:
        """What the child is foreseen to cost there."""
        return _sum_costs(self.served, self.choices)

    @cached_property
    def parent_costs(self) -> dict[str, float]:
        """What the parent is foreseen to cost there."""
        return _sum_costs(self.served, _choices_of(self.parent))

    def _costs_at(self, scenario: str) -> dict[str, Any]:
        several = self.costs["scenarios"]
        return next((one for one in several if one["scenario"] == scenario), several[0])

    @cached_property
    def decode_ms_searched(self) -> tuple[float, float]:
        """The parent's and the child's time to decode where the search compared them."""
        costs = self._costs_at(self.searched_at)
        parent, child = (_sum_costs(costs, c) for c in (_choices_of(self.parent), self.choices))
        saved = sum(span.get("decode_ms", 0.0) for span in self.spans)
        return parent["decode_ms"], child["decode_ms"] - saved

    @cached_property
    def spans(self) -> list[dict[str, Any]]:
        """What the search's table says of the layers that it fuses."""
        return [
            span
            for span in self.table.get("spans", [])
            if "{}-{}".format(*span["layers"]) in self.fused
        ]

    @cached_property
    def task(self) -> dict[str, Any]:
        """The first task's figures by model; empty without a task."""
        return next(iter(self.results.get("tasks", {}).values()), {})

    @cached_property
    def task_mode(self) -> Mode:
        """The mode that a model's one figure stands for: with reasoning, where the child has it."""
        return "on" if "on" in self.task["child"] else "off"

    @cached_property
    def score(self) -> float:
        """What the search minimised: the scores of what was chosen, of its pairs and its spans."""
        chosen = {(i, name) for i, names in enumerate(self.chosen) for name in names}
        singles = (
            alternative["score"]
            for i, layer in enumerate(self.table["layers"])
            for alternatives in layer.values()
            for name, alternative in alternatives.items()
            if (i, name) in chosen
        )
        pairs = (
            pair["score"]
            for pair in self.table.get("pairs", [])
            if {tuple(place) for place in pair["choices"]} <= chosen
        )
        return sum(singles) + sum(pairs) + sum(span["score"] for span in self.spans)

    @cached_property
    def additivity_error(self) -> float | None:
        """How far a pair's joint score is from the sum, relative, in the median; None unknown."""
        pairs = [(p["joint"], p["sum"]) for p in self.scores.get("joint", [])]
        errors = [abs(joint / total - 1) for joint, total in pairs if total > 0]
        return median(errors) if errors else None

    @property
    def stored(self) -> dict[str, list[int]]:
        """The layers whose matrices are served in 8 bits: "attention in int8" -> layers."""
        found: dict[str, list[int]] = {}
        for i, block in enumerate(self.assembled.blocks):
            halves = (("attention", block.attention_precision), ("FFN", block.ffn_precision))
            for half, precision in halves:
                if precision != "full":
                    found.setdefault(f"{half} in {precision}", []).append(i)
        return found

    @property
    def is_fused(self) -> bool:
        """Whether FFNs of the assembled child became one."""
        return bool(self.fusion and self.fusion["chosen"]["groups"])

    @cached_property
    def predicted(self) -> dict[str, float]:
        """The speed-up the table forecasts, by phase; it knows nothing of fused FFNs."""
        if self.is_fused:
            return {}
        pairs = {p: (self.parent_costs[f"{p}_ms"], self.child_costs[f"{p}_ms"]) for p in PHASES}
        return {phase: parent / child for phase, (parent, child) in pairs.items() if child}

    @cached_property
    def num_params(self) -> dict[str, int]:
        """Parameters of parent and child."""
        return {"parent": num_params(self.parent), "child": num_params(self.child)}

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Each target with the figure that decides it."""
        return [
            decide(target, self.speed, self.parent_costs, self.child_costs)
            for target in parse_targets(self.target)
        ]

    def manifests(self, stage: str) -> list[dict[str, Any]]:
        """Return the manifests of a stage in the lineage."""
        found = [made.manifest for made in self.lineage if made.manifest]
        return [manifest for manifest in found if manifest["stage"] == stage]


def _choices_of(config: ModelConfig) -> list[tuple[str, str]]:
    return [names_of(block) for block in config.blocks]


def _sum_costs(costs: Mapping[str, Any], choices: Sequence[tuple[str, str]]) -> dict[str, float]:
    parts = [costs["fixed"], *(costs["alternatives"][n] for names in choices for n in names)]
    return {name: sum(part[name] for part in parts) for name in costs["fixed"]}


# --- reading --------------------------------------------------------------------------------------


def read_findings(inputs: Mapping[str, Path]) -> Findings:
    """Read what the report's inputs hold. Raises `ValueError` where a file is not there."""
    parent, child, search = inputs["parent"], inputs["child"], inputs["search"]
    assembled = read_served_config(inputs["assembled"])
    forecast = read_json(search / "forecast.json")
    results = read_json(inputs["eval"] / "results.json")
    return Findings(
        parent_name=read_parent_name(parent),
        parent=read_served_config(parent),
        child=read_served_config(child),
        assembled=assembled,
        is_decilm=read_json(child / "config.json").get("model_type") == DECILM,
        licence=read_licence(parent),
        ranking=load_file(artifact.verified(inputs["ranking"] / "ranking.safetensors")),
        table=read_json(search / "table.json"),
        scores=read_json(inputs["scores"] / "scores.json"),
        costs=read_json(inputs["costs"] / "costs.json"),
        target=forecast["target"],
        searched_at=forecast["scenario"],
        front=read_json(search / "front.json"),
        baselines=read_json(search / "baselines.json"),
        trained=read_json(inputs["library"] / "bld.json") if "library" in inputs else {},
        correction=read_json_if_there(search / "correction.json"),
        fused=_read_fused_by_search(search, assembled),
        fusion=_read_fusion(inputs["fused"]) if "fused" in inputs else {},
        candidates=read_json_if_there(inputs["assembled"] / "chosen.json"),
        healing=artifact.read_manifest(child)["metrics"],
        healing_rows=read_metrics(child),
        results=results,
        in_8_bits=read_in_8_bits(inputs),
        speed=read_json(inputs["bench"] / "speed.json"),
        lineage=read_lineage(inputs),
        reasoning=read_reasoning(inputs, results),
    )


def _read_fused_by_search(search: Path, assembled: ModelConfig) -> tuple[str, ...]:
    """Return the layers that the search fuses of this child of it."""
    own = [list(names) for names in _choices_of(assembled)]
    solutions = read_json_if_there(search / "solutions.json") or []
    return next((tuple(s.get("fused", ())) for s in solutions if s["choices"] == own), ())


def _read_fusion(folder: Path) -> dict[str, Any]:
    dependency = read_json_if_there(folder / "dependency.json")
    return {**read_json(folder / "fusion.json"), "dependency": dependency}
