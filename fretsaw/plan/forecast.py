"""What a recipe will take: memory, time, disk, tokens and money of every stage, before any of it.

Shapes follow from the settings, stage by stage; of the child that a search will find, the one that
keeps most parameters by roofline stands in. The standard library and the search alone: no torch.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fretsaw.checkpoint.folder import read_config
from fretsaw.checkpoint.hub import resolve
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.budget import USABLE
from fretsaw.distill.phases import extended
from fretsaw.distill.settings import PretrainSettings
from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.pipeline.kinds import STAGES
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.calibration import Calibration, Point, factors, finished_times, start_of
from fretsaw.plan.stages import WORK
from fretsaw.plan.work import Hardware, Phase, Shapes, Work
from fretsaw.puzzle.costs.closed_form import roofline_table
from fretsaw.puzzle.costs.probes import alternative_names
from fretsaw.puzzle.search.explain import Infeasible
from fretsaw.puzzle.search.solutions import SOLUTIONS, search_table
from fretsaw.puzzle.search.table import Table
from fretsaw.puzzle.settings import SpaceSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.scenario.scenario import Scenario, parse_scenarios
from fretsaw.scenario.target import limits, parse_targets
from fretsaw.stage.artifact import MANIFEST, read_manifest
from fretsaw.stage.progress import say
from fretsaw.stage.settings import build

PROXY_GAP = 1e-3  # of the search: its score here is only a proxy, and full of ties
MODELS = ("parent", "model", "child")  # inputs that are checkpoints
PASSED_ON = {  # the input whose shapes a stage's own model has
    "assemble": "search",
    "verify": "search",
    "fuse": "model",
    "select": "child",
    "distill": "child",
    "cpt": "model",
    "sft": "model",
    "rl": "model",
}
ConfigOf = Callable[[str], ModelConfig]  # of a checkpoint that no stage makes


@dataclass(frozen=True)
class StageForecast:
    """One stage foreseen."""

    name: str
    work: Work
    devices: int  # that it keeps busy
    seconds: float
    is_calibrated: bool  # whether stages of its kind have told their speed

    @property
    def device_hours(self) -> float:
        """Hours of all its devices together."""
        return self.seconds * self.devices / 3600


@dataclass(frozen=True)
class Forecast:
    """A whole recipe foreseen."""

    hardware: Hardware
    stages: tuple[StageForecast, ...]
    start_s: float  # of every stage's process
    source: str  # where the speeds are known from

    @property
    def seconds(self) -> float:
        """From the first stage's start to the last one's end."""
        return sum(stage.seconds + self.start_s for stage in self.stages)

    @property
    def is_calibrated(self) -> bool:
        """Whether any stage's kind has told its speed."""
        return any(stage.is_calibrated for stage in self.stages)

    def too_large(self) -> Iterator[tuple[StageForecast, Phase]]:
        """Yield the stages, and their phases, that a device can't hold."""
        usable = USABLE * self.hardware.device.memory_bytes
        for stage in self.stages:
            for phase in stage.work.phases:
                if phase.memory > usable:
                    yield stage, phase


def foresee(
    stages: Sequence[Stage],
    hardware: Hardware,
    config_of: ConfigOf,
    calibration: Calibration | None = None,
    *,
    earlier: Path | None = None,
) -> Forecast:
    """Return the forecast of a recipe's stages.

    Shapes are those of an `earlier` run's folder where it has them. Raises `ValueError` for stages
    that contradict one another.
    """
    calibration = calibration or Calibration()
    shapes = shapes_of(stages, hardware, config_of, earlier)
    found = []
    for stage in stages:
        kind = STAGES[stage.kind]
        is_shared = kind.is_distributed or (kind.has_workers and stage.kind != "cost")
        here = (hardware if is_shared else hardware.alone).running(stage.kind)
        work = WORK[stage.kind](stage.settings, shapes[stage.name], here)
        seconds, is_calibrated = calibration.seconds(stage.kind, work.seconds)
        found.append(StageForecast(stage.name, work, here.count, seconds, is_calibrated))
    return Forecast(hardware, tuple(found), calibration.start_s, calibration.source)


def calibrate(run: Path, hardware: Hardware) -> Calibration:
    """Return what an earlier run on this hardware tells of the speed of its stages."""
    times = finished_times(run)
    in_order = sorted(times, key=lambda name: times[name][1])  # several targets share what is first
    stages = stages_of(run, in_order)
    foreseen = foresee(stages, hardware, outside, earlier=run).stages
    kinds = {stage.name: stage.kind for stage in stages}
    points = [Point(kinds[s.name], s.seconds, times[s.name][0]) for s in foreseen]
    return Calibration(factors(points), start_of(times.values()), f"the run in {run}")


def stages_of(run: Path, names: Sequence[str]) -> list[Stage]:
    """Return the finished stages of a run as they were asked for."""
    found = []
    for name in names:
        manifest = read_manifest(run / name)
        inputs: dict[str, str | Path | list[str | Path]] = {}
        for key, entry in manifest["inputs"].items():
            made_by = [one for one in names if str(entry["path"]).endswith(f"/{one}")]
            inputs[key] = max(made_by, key=len, default=str(entry["path"]))
        kind = STAGES[manifest["stage"]]
        known = {key: value for key, value in inputs.items() if key in kind.inputs}
        found.append(Stage(name, build(kind.settings, manifest["settings"]), known))
    return found


# --- shapes ---------------------------------------------------------------------------------------


def outside(name_or_path: str) -> ModelConfig:
    """Read the architecture of a checkpoint that is there already, or on the Hub."""
    return read_config(resolve(name_or_path, weights=False))


def inputs_of(stage: Stage) -> Iterator[tuple[str, str]]:
    """Yield (input, stage or path), every one of a list."""
    for name, value in stage.inputs.items():
        for one in value if isinstance(value, list) else [value]:
            yield name, str(one)


def shapes_of(
    stages: Sequence[Stage], hardware: Hardware, config_of: ConfigOf, earlier: Path | None = None
) -> dict[str, Shapes]:
    """Return what every stage reads, checked to go together.

    Raises `ValueError` for an input that no earlier stage makes, or one of the wrong kind, and for
    settings that do not fit the networks or one another.
    """
    check_names(stages)
    check_tokenizers(stages)
    by_name = {stage.name: stage for stage in stages}
    made: dict[str, ModelConfig] = {}
    shapes: dict[str, Shapes] = {}
    for stage in stages:
        inputs = dict(inputs_of(stage))
        models = {}
        for name, value in inputs.items():
            if value in made:
                models[name] = made[value]
            elif value not in by_name and name in MODELS:
                models[name] = config_of(value)
        if stage.kind == "pretrain":
            corpus = stage_of(inputs["corpus"], by_name)
            tokenized_for = models.get("corpus")
            if tokenized_for is None and "parent" in corpus.inputs:
                tokenized_for = config_of(str(corpus.inputs["parent"]))
            models["model"] = pretrained(stage.settings, corpus.settings, tokenized_for)
            made[stage.name] = models["model"]
        elif stage.kind == "search":
            costs = stage_of(inputs["costs"], by_name)
            scores = stage_of(inputs["scores"], by_name)
            is_made = costs.name in shapes
            parent = (
                shapes[costs.name]["parent"] if is_made else config_of(str(costs.inputs["parent"]))
            )
            check_searched(stage, costs, scores, parent)
            space, scenario = scores.settings.space, parse_scenarios(costs.settings.scenario)[0]
            child = child_of(parent, stage.settings.target, space, scenario, hardware)
            models["child"] = made[stage.name] = child
        elif stage.kind == "corpus" and "parent" in models:
            made[stage.name] = models["parent"]  # for the vocabulary of what is trained on it
        elif stage.kind in PASSED_ON:
            if PASSED_ON[stage.kind] == "search" and "search" not in models:
                number = getattr(stage.settings, "solution", 0)
                models["search"] = found_child(models["parent"], Path(inputs["search"]), number)
            made[stage.name] = grown(models[PASSED_ON[stage.kind]], stage)
        if earlier and stage.kind != "corpus" and (earlier / stage.name / "config.json").is_file():
            made[stage.name] = read_config(earlier / stage.name)
        check_rows(stage, models)
        files = [Path(value) for name, value in inputs_of(stage) if name == "data"]
        text_bytes = sum(file.stat().st_size for file in files if file.is_file())
        shapes[stage.name] = Shapes(frozenset(inputs), models, text_bytes)
    check_teaching(stages, by_name)
    return shapes


def stage_of(value: str, by_name: Mapping[str, Stage]) -> Stage:
    """Return the stage that an input names, or the one that made a finished folder."""
    if value in by_name:
        return by_name[value]
    if not (Path(value) / MANIFEST).is_file():
        raise ValueError(
            f"plan: {value} is no stage of the recipe and no finished folder (no {MANIFEST}); give "
            "one of them"
        )
    manifest = read_manifest(Path(value))
    settings = build(STAGES[manifest["stage"]].settings, manifest["settings"])
    paths = {name: str(entry["path"]) for name, entry in manifest["inputs"].items()}
    return Stage(value, settings, {**paths})


def found_child(parent: ModelConfig, search: Path, number: int) -> ModelConfig:
    """Return a child of a finished search, counted from the best."""
    if not (search / SOLUTIONS).is_file():
        raise ValueError(f"plan: {search} holds no {SOLUTIONS}; give the folder of a search")
    solutions = json.loads((search / SOLUTIONS).read_text())
    if not 0 <= number < len(solutions):
        raise ValueError(f"plan: {search} has {len(solutions)} solutions; number {number} is none")
    choices = solutions[number]["choices"]
    blocks = blocks_from_names((attention, ffn) for attention, ffn in choices)
    return replace(parent, blocks=blocks).in_full


def grown(config: ModelConfig, stage: Stage) -> ModelConfig:
    """Return what a stage leaves of a network's context, which longer rows may stretch."""
    train = getattr(stage.settings, "train", None)
    for phase in train.phases if train is not None else ():
        config = extended(config, phase)
    return config


def pretrained(
    s: PretrainSettings, corpus: CorpusSettings, tokenized_for: ModelConfig | None
) -> ModelConfig:
    """Return the network that pretraining makes."""
    vocab_size = tokenized_for.vocab_size if tokenized_for else corpus.vocab_size
    return ModelConfig.uniform(
        num_hidden_layers=s.num_hidden_layers,
        num_key_value_heads=s.num_key_value_heads,
        intermediate_size=s.intermediate_size,
        vocab_size=vocab_size,
        hidden_size=s.hidden_size,
        num_attention_heads=s.num_attention_heads,
        head_dim=s.hidden_size // s.num_attention_heads,
        tie_word_embeddings=s.tie_word_embeddings,
        max_position_embeddings=s.max_position_embeddings,
    )


def child_of(
    parent: ModelConfig, target: str, space: SpaceSettings, scenario: Scenario, hardware: Hardware
) -> ModelConfig:
    """Return the child that keeps most parameters at a target, by roofline; else the parent."""
    here = replace(scenario, device=hardware.device.name)
    names = {n for b in parent.blocks for pair in layer_alternatives(b, space) for n in pair}
    attention = tuple(n for n in names if not n.startswith("ffn"))
    whole = roofline_table(parent, (attention, tuple(names - {*attention})), here)
    layers = []
    for block, layer in zip(parent.blocks, whole.layers, strict=True):
        own = zip(("attention", "ffn"), layer_alternatives(block, space), strict=True)
        layers.append({half: {n: layer[half][n] for n in ordered} for half, ordered in own})
    table = Table(tuple(layers), whole.fixed, whole.units)
    costs = dict(table.fixed)
    for layer in table.layers:
        for alternatives in layer.values():
            for cost, value in next(iter(alternatives.values())).costs.items():
                costs[cost] += value
    targets = [replace(one, at="") for one in parse_targets(target)]
    try:
        child = search_table(table, limits(targets, costs), gap=PROXY_GAP)[0]
    except Infeasible as error:
        say(
            f"plan: {target}: {error}; what follows the search is sized for a child like the parent"
        )
        return parent
    blocks = blocks_from_names((choice[0], choice[1]) for choice in child.choices)
    return replace(parent, blocks=blocks).in_full


# --- what contradicts -----------------------------------------------------------------------------


def check_names(stages: Sequence[Stage]) -> None:
    """Raise for inputs that are missing, unknown, made later, or made by another kind of stage."""
    by_name = {stage.name: stage for stage in stages}
    before: set[str] = set()
    for stage in stages:
        kind = STAGES[stage.kind]
        missing = kind.inputs.keys() - kind.optional - stage.inputs.keys()
        unknown = stage.inputs.keys() - kind.inputs.keys()
        if missing or unknown:
            wrong = f"lacks {min(missing)!r}" if missing else f"has an unknown {min(unknown)!r}"
            raise ValueError(f"stage {stage.name!r} {wrong}; it reads {', '.join(kind.inputs)}")
        if stage.name in before:
            raise ValueError(f"recipe: two stages are named {stage.name!r}; names are folders")
        for name, value in inputs_of(stage):
            if value in by_name and value not in before:
                raise ValueError(
                    f"stage {stage.name!r} reads {value!r} as its {name}, which comes after it; "
                    "put it before"
                )
            found, wanted = by_name.get(value), MAKERS.get(name)
            if wanted and found is None and name not in MODELS and not Path(value).exists():
                raise ValueError(
                    f"stage {stage.name!r} reads {value!r} as its {name}, but no stage and no "
                    f"folder has that name; a {' or '.join(wanted)} stage makes it"
                )
            if found is not None and wanted and found.kind not in wanted:
                raise ValueError(
                    f"stage {stage.name!r} reads {value!r} as its {name}, which is made by "
                    f"{' or '.join(wanted)}, not by {found.kind}"
                )
        before.add(stage.name)


MAKERS = {  # input -> the kinds of stage that make it
    "corpus": ("corpus",),
    "ranking": ("rank",),
    "scores": ("score",),
    "costs": ("cost",),
    "search": ("search", "verify"),
    "library": ("bld",),
    "teacher": ("teach",),
    "parent": ("pretrain", "cpt", "distill", "sft", "rl", "assemble", "fuse", "select"),
    "model": ("pretrain", "cpt", "distill", "sft", "rl", "assemble", "fuse", "select"),
    "child": ("pretrain", "distill", "cpt", "sft", "rl", "assemble", "fuse", "select"),
}


def check_tokenizers(stages: Sequence[Stage]) -> None:
    """Raise where text that trains a tokenizer of its own is read beside a model of another."""
    own = {s.name for s in stages if s.kind == "corpus" and "parent" not in s.inputs}
    trained_on: dict[str, str] = {}  # by the stage that makes a model, the corpus
    for stage in stages:
        inputs = dict(inputs_of(stage))
        models = [inputs[name] for name in MODELS if name in inputs]
        corpus = inputs.get("corpus", "")
        if stage.kind == "pretrain":
            trained_on[stage.name] = corpus
        elif models and models[0] in trained_on:
            trained_on[stage.name] = trained_on[models[0]]
        for model in models:
            if corpus in own and trained_on.get(model) != corpus:
                raise ValueError(
                    f"stage {stage.name!r} reads {model!r} and {corpus!r}, which trains a "
                    f"tokenizer of its own; give {corpus!r} the parent {model!r}"
                )


def check_searched(stage: Stage, costs: Stage, scores: Stage, parent: ModelConfig) -> None:
    """Raise where alternatives are scored that are not costed, or a target is for no scenario."""
    costed, scored = (set(alternative_names(parent, s.settings.space)) for s in (costs, scores))
    if missing := sorted(scored - costed):
        raise ValueError(
            f"stage {stage.name!r}: {scores.name!r} scores {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}, which "
            f"{costs.name!r} does not cost; give both the same space"
        )
    scenarios = parse_scenarios(costs.settings.scenario)
    for target in parse_targets(stage.settings.target):
        if target.at and not any(scenario.agrees(target.at) for scenario in scenarios):
            raise ValueError(
                f"stage {stage.name!r}: target {target} names no scenario that {costs.name!r} "
                f"costs: {costs.settings.scenario}"
            )


def check_rows(stage: Stage, models: dict[str, ModelConfig]) -> None:
    """Raise where rows, prompts with their answers, or scenarios outgrow a network's context."""
    s = stage.settings
    train = getattr(s, "train", None)
    asked = {"seq_len": getattr(s, "seq_len", 0)}
    if train is not None and stage.kind != "cpt":  # which may stretch the context itself
        asked = {"seq_len": train.seq_len}
    if stage.kind == "rl":
        asked["max_tokens"] = s.max_tokens
    for scenario in parse_scenarios(s.scenario) if getattr(s, "scenario", "") else ():
        asked[f"scenario {scenario}"] = scenario.prompt_tokens + scenario.output_tokens
    for name, config in models.items():
        for what, tokens in asked.items():
            if name != "corpus" and tokens > config.max_position_embeddings:
                raise ValueError(
                    f"stage {stage.name!r}: {what} of {tokens} tokens, but the context of its "
                    f"{name} is {config.max_position_embeddings}; shorten it"
                )


def check_teaching(stages: Sequence[Stage], by_name: dict[str, Stage]) -> None:
    """Raise where a distillation wants other of its teacher's answers than are stored."""
    for stage in stages:
        taught = by_name.get(str(stage.inputs.get("teacher", "")))
        if stage.kind != "distill" or taught is None:
            continue
        own, stored = stage.settings.train, taught.settings
        for name in ("tokens", "seq_len"):
            if getattr(own, name) != getattr(stored, name):
                raise ValueError(
                    f"stage {stage.name!r} trains on {name} {getattr(own, name)}, but "
                    f"{taught.name!r} stores answers for {name} {getattr(stored, name)}; make them "
                    "the same"
                )
        if stage.settings.cosine_weight > 0:
            raise ValueError(
                f"stage {stage.name!r}: stored answers have no hidden states; set its "
                "cosine_weight to 0"
            )
