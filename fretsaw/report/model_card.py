"""What a finished compression left on disk, read once, and the model card written from it.

`Findings` is all that the page and the card say; both are views of it. Nothing here runs a model
or imports torch: sizes follow from the configs, speeds and losses from the stages' JSON.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from fretsaw.checkpoint.decilm import MODEL_TYPE as DECILM
from fretsaw.checkpoint.folder import read_config, read_served_config
from fretsaw.model.config import ModelConfig
from fretsaw.model.size import num_params
from fretsaw.report.reasoning import Reasoning, read_reasoning
from fretsaw.scenario.memory import network_memory
from fretsaw.scenario.scenario import Scenario
from fretsaw.scenario.target import Target, parse_targets
from fretsaw.stage import artifact
from fretsaw.stage.progress import format_seconds

PHASES = ("prefill", "decode")
LICENCE_KEYS = ("license", "license_name", "license_link")
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Verdict:
    """Whether one target was reached, and by which figure."""

    target: Target
    value: float  # in the target's own unit
    how: str  # "measured", or "computed" from the shapes
    noise: float  # relative
    status: str  # "reached" or "missed", "within noise" added where the noise could turn it


@dataclass(frozen=True)
class Made:
    """One artifact of the lineage."""

    name: str
    digest: str
    folder: Path
    manifest: dict[str, Any] | None  # None: it came from outside


@dataclass(frozen=True)
class InEightBits:
    """The parent with its layers' matrices in 8 bits and nothing removed."""

    precision: str
    memory_mib: float  # at the scenario that was benched
    figures: dict[str, Any]  # its `results.json`


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything a finished compression says of itself."""

    parent_name: str
    parent: ModelConfig
    child: ModelConfig
    assembled: ModelConfig  # the child with a layer for each of the parent's: before any fusion
    is_decilm: bool
    licence: dict[str, str]
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
    results: dict[str, Any]
    in_8_bits: list[InEightBits]
    speed: dict[str, Any]
    lineage: list[Made]
    reasoning: Reasoning

    @cached_property
    def choices(self) -> list[tuple[str, str]]:
        """The child's [attention, ffn] by the parent's layer."""
        return names_of(self.assembled)

    @cached_property
    def chosen(self) -> list[tuple[str, ...]]:
        """The same as the table names them: where it scores whole blocks, one name a layer."""
        pairs = zip(self.table["layers"], self.choices, strict=True)
        return [("+".join(names),) if "block" in layer else names for layer, names in pairs]

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
        return _sum_costs(self.served, names_of(self.parent))

    def _costs_at(self, scenario: str) -> dict[str, Any]:
        several = self.costs["scenarios"]
        return next((one for one in several if one["scenario"] == scenario), several[0])

    @cached_property
    def decode_ms_searched(self) -> tuple[float, float]:
        """The parent's and the child's time to decode where the search compared them."""
        costs = self._costs_at(self.searched_at)
        parent, child = (_sum_costs(costs, c) for c in (names_of(self.parent), self.choices))
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
        return [_verdict(self, target) for target in parse_targets(self.target)]

    def manifests(self, stage: str) -> list[dict[str, Any]]:
        """Return the manifests of a stage in the lineage."""
        found = [made.manifest for made in self.lineage if made.manifest]
        return [manifest for manifest in found if manifest["stage"] == stage]


# --- reading --------------------------------------------------------------------------------------


def read_findings(inputs: Mapping[str, Path]) -> Findings:
    """Read what the report's inputs hold."""
    parent, child = inputs["parent"], inputs["child"]
    forecast = _read(inputs["search"] / "forecast.json")
    results = _read(inputs["eval"] / "results.json")
    return Findings(
        parent_name=_parent_name(parent),
        parent=read_served_config(parent),
        child=read_served_config(child),
        assembled=read_served_config(inputs["assembled"]),
        is_decilm=_read(child / "config.json").get("model_type") == DECILM,
        licence=_licence(parent / "README.md"),
        table=_read(inputs["search"] / "table.json"),
        scores=_read(inputs["scores"] / "scores.json"),
        costs=_read(inputs["costs"] / "costs.json"),
        target=forecast["target"],
        searched_at=forecast["scenario"],
        front=_read(inputs["search"] / "front.json"),
        baselines=_read(inputs["search"] / "baselines.json"),
        trained=_read(inputs["library"] / "bld.json") if "library" in inputs else {},
        correction=_read_if_there(inputs["search"] / "correction.json"),
        fused=_fused_by_search(inputs["search"], read_served_config(inputs["assembled"])),
        fusion=_read_fusion(inputs["fused"]) if "fused" in inputs else {},
        candidates=_read_if_there(inputs["assembled"] / "chosen.json"),
        healing=artifact.read_manifest(child)["metrics"],
        results=results,
        in_8_bits=_read_in_8_bits(inputs),
        speed=_read(inputs["bench"] / "speed.json"),
        lineage=read_lineage(inputs),
        reasoning=read_reasoning(inputs, results),
    )


def names_of(config: ModelConfig) -> list[tuple[str, str]]:
    """Return the alternatives' names of every layer."""
    return [(block.attention_name, block.ffn_name) for block in config.blocks]


def read_lineage(inputs: Mapping[str, Path]) -> list[Made]:
    """Return every artifact behind the inputs once, each after what it was made from."""
    found: dict[str, Made] = {}

    def visit(name: str, folder: Path, recorded: str) -> None:
        if recorded in found:
            return
        manifest = _manifest_of(folder, recorded)
        for inner_name, entry in manifest["inputs"].items() if manifest else ():
            visit(inner_name, Path(entry["path"]), entry["hash"])
        found[recorded] = Made(name, recorded, folder, manifest)

    for name, folder in inputs.items():
        if (folder / artifact.MANIFEST).is_file():
            visit(name, folder, artifact.artifact_hash(artifact.read_manifest(folder)))
    return list(found.values())


def _manifest_of(folder: Path, recorded: str) -> dict[str, Any] | None:
    if not (folder / artifact.MANIFEST).is_file():
        return None
    manifest = artifact.read_manifest(folder)
    return manifest if artifact.artifact_hash(manifest) == recorded else None  # made again since


def _read_in_8_bits(inputs: Mapping[str, Path]) -> list[InEightBits]:
    """Return what every evaluation of the parent in 8 bits found."""
    config = read_config(inputs["parent"])
    scenario = Scenario.parse(_read(inputs["bench"] / "speed.json")["scenario"])
    found = []
    for folder in (path for key, path in inputs.items() if key.startswith("quantised")):
        manifest, results = artifact.read_manifest(folder), _read(folder / "results.json")
        precision = manifest["settings"].get("weights")
        is_parents = manifest["inputs"]["model"]["hash"] == artifact.hash_path(inputs["parent"])
        if precision not in ("fp8", "int8") or not is_parents or "kl" not in results:
            raise ValueError(
                f"{folder}: no evaluation of the parent in 8 bits on text; make it with `fretsaw "
                "eval --model PARENT --parent PARENT --corpus CORPUS --weights fp8`"
            )
        stored = replace(
            config, blocks=tuple(b.stored(precision, precision) for b in config.blocks)
        )
        memory_mib = network_memory(stored, scenario)
        found.append(InEightBits(precision, memory_mib, results))
    return found


def _fused_by_search(search: Path, assembled: ModelConfig) -> tuple[str, ...]:
    """Return the layers that the search fuses of this child of it."""
    own = [list(names) for names in names_of(assembled)]
    solutions = _read_if_there(search / "solutions.json") or []
    return next((tuple(s.get("fused", ())) for s in solutions if s["choices"] == own), ())


def _read_fusion(folder: Path) -> dict[str, Any]:
    dependency = _read_if_there(folder / "dependency.json")
    return {**_read(folder / "fusion.json"), "dependency": dependency}


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: not there; the report reads it, so make its stage again")
    return json.loads(path.read_text())


def _read_if_there(path: Path) -> Any:
    return _read(path) if path.is_file() else {}


def _parent_name(folder: Path) -> str:
    """Return the Hub id where one is known, else the folder's name."""
    cached = _HUB_CACHE.search(str(folder))
    if cached:
        return f"{cached[1]}/{cached[2]}"
    stated = _read(folder / "config.json").get("_name_or_path", "")
    return stated if _HUB_ID.fullmatch(stated) else folder.resolve().name


def _licence(readme: Path) -> dict[str, str]:
    """Return what the parent's model card says of its licence, if there is one."""
    if not readme.is_file():
        return {}
    head = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8"), re.DOTALL)
    pairs = [line.partition(":") for line in head[1].splitlines()] if head else []
    values = {key: value.strip().strip("'\"") for key, _, value in pairs}
    return {key: values[key] for key in LICENCE_KEYS if values.get(key)}


# --- figures --------------------------------------------------------------------------------------


def _sum_costs(costs: Mapping[str, Any], choices: Sequence[tuple[str, str]]) -> dict[str, float]:
    parts = [costs["fixed"], *(costs["alternatives"][n] for names in choices for n in names)]
    return {name: sum(part[name] for part in parts) for name in costs["fixed"]}


def _verdict(findings: Findings, target: Target) -> Verdict:
    names = target.cost.split("+")
    if target.quantity in ("memory", "params"):
        child, parent = findings.child_costs[names[0]], findings.parent_costs[names[0]]
        value = child if target.unit == "mib" else child / parent
        status = "reached" if value <= target.amount else "missed"
        return Verdict(target, value, "computed", 0.0, status)
    phases = [findings.speed[name.removesuffix("_ms")] for name in names]
    noise = max(phase["noise_floor"] for phase in phases)
    child = sum(phase["child_ms"] for phase in phases)
    value = sum(phase["parent_ms"] for phase in phases) / child
    if len(phases) == 1:
        value = phases[0]["speedup"]  # the median of the ratios, not the ratio of the medians
    lead = value / target.amount - 1
    if target.unit == "ms":
        value, lead = child, target.amount / child - 1
    status = "reached" if lead >= 0 else "missed"
    doubt = " within noise" if abs(lead) <= noise else ""
    return Verdict(target, value, "measured", noise, status + doubt)


# --- the card -------------------------------------------------------------------------------------


def environment() -> jinja2.Environment:
    """Return the templates beside this file; the page is escaped, the card is Markdown."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "count": count,
        "percent": percent,
        "nats": nats,
        "loss": "{:.4f}".format,
        "median": median,
        "seconds": format_seconds,
        "goal": goal,
        "reached": reached,
    }
    return env


def model_card(findings: Findings) -> str:
    """Return README.md of the healed child, with the front matter the Hub reads."""
    is_hub = bool(_HUB_ID.fullmatch(findings.parent_name))
    return environment().get_template("card.md.jinja").render(f=findings, is_hub=is_hub)


def count(value: float) -> str:
    """Write a number of parameters or tokens: 583.7 k, 1.64 M, 8.03 B."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * size:  # what rounds to one million is one
            return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value:,.0f}"
    return f"{value:g}"


def percent(value: float, digits: int = 0) -> str:
    """Write a share: 34 %."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def nats(value: float) -> str:
    """Write a loss or a divergence with three digits that count."""
    return "0" if value == 0 else f"{value:.2e}" if abs(value) < 1e-4 else f"{value:#.3g}"


def reached(verdict: Verdict) -> str:
    """Write the figure that decides a target, in the target's unit."""
    match verdict.target.unit:
        case "speedup":
            return f"{verdict.value:.2f}×"
        case "share":
            return percent(verdict.value, 1)
        case "ms":
            return f"{verdict.value:,.0f} ms"
        case _:
            return f"{verdict.value:,.1f} MiB"


def goal(target: Target) -> str:
    """Write what a target asks for, as a heading."""
    return (
        f"{target} memory" if target.unit == "mib" and "memory" not in str(target) else str(target)
    )
