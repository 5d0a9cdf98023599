"""What every stage of a recipe reads: networks, whose shapes follow from settings stage by stage.

The standard library and the search alone: no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fretsaw.checkpoint.folder import check, read_config
from fretsaw.checkpoint.hub import resolve
from fretsaw.distill.phases import extended
from fretsaw.model.config import ModelConfig
from fretsaw.pipeline.kinds import CHECKPOINTS, STAGES
from fretsaw.pipeline.recipe import Stage, inputs_of
from fretsaw.plan.contradictions import check_names, check_rows, check_teaching, check_tokenizers
from fretsaw.plan.stage_plan import Networks, Recipe
from fretsaw.plan.work import Hardware, Shapes
from fretsaw.stage.artifact import MANIFEST, read_manifest
from fretsaw.stage.settings import build

ConfigOf = Callable[[str], ModelConfig]  # of a checkpoint that no stage makes


class Unforeseen(ValueError):
    """What an input was made of is not known, so neither is what a stage makes of it."""


def outside(name_or_path: str) -> ModelConfig:
    """Read the architecture of a checkpoint that is there already, or on the Hub.

    Of a folder whatever is there is checked: a plan of a broken checkpoint helps nobody.
    """
    folder = resolve(name_or_path, weights=False)
    if Path(name_or_path).expanduser().is_dir():
        return check(folder, needs_weights=False)
    return read_config(folder)


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
    made: Networks = {}
    shapes: dict[str, Shapes] = {}
    recipe = Recipe(hardware, config_of, lambda value: stage_of(value, by_name), shapes)
    for stage in stages:
        inputs = dict(inputs_of(stage))
        networks = _read_networks(inputs, made, by_name, config_of)
        kind = STAGES[stage.kind]
        if found := kind.load_plan().network(stage, networks, recipe):
            name, own = found
            networks[name] = own
        if kind.like in networks:
            made[stage.name] = grown(networks[kind.like], stage)
        elif found:
            made[stage.name] = found[1]
        if earlier and stage.kind != "corpus" and (earlier / stage.name / "config.json").is_file():
            made[stage.name] = read_config(earlier / stage.name)
        check_rows(stage, networks)
        shapes[stage.name] = Shapes(frozenset(inputs), networks, _text_bytes(stage))
    check_teaching(stages, by_name)
    return shapes


def _read_networks(
    inputs: Mapping[str, str], made: Networks, by_name: Mapping[str, Stage], config_of: ConfigOf
) -> Networks:
    """Return the networks that a stage reads: of earlier stages, and of checkpoints outside."""
    return {
        name: made[value] if value in made else config_of(value)
        for name, value in inputs.items()
        if value in made or (name in CHECKPOINTS and value not in by_name)
    }


def _text_bytes(stage: Stage) -> int:
    files = [Path(value) for name, value in inputs_of(stage) if name == "data"]
    return sum(file.stat().st_size for file in files if file.is_file())


def stage_of(value: str, by_name: Mapping[str, Stage]) -> Stage:
    """Return the stage that an input names, or the one that made a finished folder."""
    if value in by_name:
        return by_name[value]
    if not (Path(value) / MANIFEST).is_file():
        raise Unforeseen(
            f"plan: {value} is no stage of the recipe and no finished folder (no {MANIFEST}); give "
            "one of them"
        )
    manifest = read_manifest(Path(value))
    settings = build(STAGES[manifest["stage"]].settings, manifest["settings"])
    paths = {name: str(entry["path"]) for name, entry in manifest["inputs"].items()}
    return Stage(value, settings, {**paths})


def grown(config: ModelConfig, stage: Stage) -> ModelConfig:
    """Return what a stage leaves of a network's context, which longer rows may stretch."""
    train = getattr(stage.settings, "train", None)
    for phase in train.phases if train is not None else ():
        config = extended(config, phase)
    return config
