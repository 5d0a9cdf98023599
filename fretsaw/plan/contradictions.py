"""What contradicts itself in a recipe, refused before anything runs."""

from collections.abc import Sequence
from pathlib import Path

from fretsaw.model.config import ModelConfig
from fretsaw.pipeline.kinds import CHECKPOINTS, STAGES
from fretsaw.pipeline.recipe import Stage, inputs_of
from fretsaw.puzzle.costs.probes import alternative_names
from fretsaw.scenario.scenario import parse_scenarios
from fretsaw.scenario.target import parse_targets


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
            found, wanted = by_name.get(value), makers_of(name)
            if wanted and found is None and name not in CHECKPOINTS and not Path(value).exists():
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


def makers_of(name: str) -> tuple[str, ...]:
    """Return the kinds of stage that make an input, none where any file or folder will do."""
    makes = "checkpoint" if name in CHECKPOINTS else name
    return tuple(kind for kind, row in STAGES.items() if row.makes == makes)


def check_tokenizers(stages: Sequence[Stage]) -> None:
    """Raise where text that trains a tokenizer of its own is read beside a model of another."""
    own = {s.name for s in stages if s.kind == "corpus" and "parent" not in s.inputs}
    trained_on: dict[str, str] = {}  # by the stage that makes a model, the corpus
    for stage in stages:
        inputs = dict(inputs_of(stage))
        models = [inputs[name] for name in CHECKPOINTS if name in inputs]
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
