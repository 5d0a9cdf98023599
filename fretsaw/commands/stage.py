"""`fretsaw STAGE`: one stage, whose options are its inputs and its settings' fields."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from fretsaw.commands.options import Checkpoint, Common
from fretsaw.data.sources import read_weights, split_weights
from fretsaw.pipeline.kinds import STAGES, StageKind, made_inputs
from fretsaw.stage.workers import HERE, Workers
from fretsaw.tasks.task import split_files

_DRY_RUN = "Check inputs and settings, say what would be done, and do nothing."


def stage(name: str, argv: list[str]) -> None:
    """Run one stage from the command line; its options are its settings' fields."""
    from fretsaw.pipeline.launch import run_stage

    if name == "eval" and argv[:1] == ["compare"]:
        from fretsaw.commands.compare import compare

        compare(argv[1:])
        return
    kind = STAGES[name]
    if kind.leading and argv and not argv[0].startswith("-"):
        argv = [f"--{kind.leading}", *argv]
    options = tyro.cli(
        _options_of(name, kind),
        args=argv,
        prog=f"fretsaw {name}",
        description=_description(name, kind),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    settings, files = options.settings, {}
    if "problems" in kind.inputs:
        task, own = split_files(settings.task)
        settings = dataclasses.replace(settings, task=task)
        if len(own) > 1 and "problems" not in kind.several:
            raise ValueError(f"--task {options.settings.task}: {len(own)} files; join them in one")
        files = {f"problems{i or ''}": path for i, path in enumerate(own)}
    if name == "eval" and (options.model or "").startswith(("http://", "https://")):
        settings, options.model = dataclasses.replace(settings, url=options.model), None
    if name == "corpus":
        options.data, weights = split_weights(options.data)
        if weights:
            settings = dataclasses.replace(settings, weights=weights)
    if name == "sft":
        options.data, weights = read_weights(options.data)
        if set(weights) - {1.0}:
            settings = dataclasses.replace(settings, weights=weights)
    common, inputs = options.common, {**files, **_inputs_in(options, kind)}
    if options.dry_run:
        from fretsaw.plan.dry_run import dry_run

        where = {"seed": common.seed, "out": common.out, "device": common.device}
        print(dry_run(name, settings, inputs, **where))
        return
    run_stage(
        name,
        settings,
        inputs,
        seed=common.seed,
        out=common.out,
        device=common.device,
        dtype=common.dtype,
        workers=getattr(options, "workers", HERE),
    )


def _options_of(name: str, kind: StageKind) -> type:
    """Return a dataclass of a stage's inputs, common options, settings and workers."""
    named_by_task = "problems"
    settings, flag = kind.settings, tyro.conf.arg(help=_DRY_RUN)
    taking_values = Annotated[settings, tyro.conf.FlagConversionOff]  # its switches too
    fields = [
        _input_field(one, text, kind) for one, text in kind.inputs.items() if one != named_by_task
    ]
    fields += [
        ("common", Common),
        ("settings", taking_values, dataclasses.field(default_factory=settings)),
    ]
    fields.append(("dry_run", Annotated[bool, flag, tyro.conf.FlagCreatePairsOff], False))
    if kind.has_workers:
        fields.append(("workers", Workers, dataclasses.field(default=HERE)))
    return dataclasses.make_dataclass(name, fields, kw_only=True)


def _input_field(name: str, text: str, kind: StageKind) -> tuple:
    """Return (name, type, default if it has one) of an input, with its help."""
    if name in kind.several:
        plain, default = list[str], dataclasses.field(default_factory=list)
    elif name in kind.optional:
        plain, default = str | None, dataclasses.field(default=None)
    else:
        plain, default = str if name != kind.positional else Checkpoint, None
    documented = Annotated[plain, tyro.conf.arg(help=text)]
    return (name, documented, default) if name in kind.optional else (name, documented)


def _description(name: str, kind: StageKind) -> str:
    several = f"On several processes: torchrun --nproc-per-node 2 -m fretsaw {name} ..."
    parts = [f"{kind.summary}.", kind.note, several if kind.is_distributed else ""]
    return " ".join(filter(None, parts))


def _inputs_in(options: Any, kind: StageKind) -> dict[str, Path]:
    """Return the inputs that were given; a list becomes `name`, `name1`, `name2`, ..."""
    from fretsaw.checkpoint.hub import resolve

    inputs: dict[str, Path] = {}
    for name in kind.inputs:
        value = getattr(options, name, None)
        if isinstance(value, list):
            inputs |= {f"{name}{i or ''}": Path(one) for i, one in enumerate(value)}
        elif value is not None:
            inputs[name] = Path(value) if name in made_inputs() else resolve(value)
    return inputs


def stage_process(argv: list[str]) -> None:
    """Run the stage that a request file describes; what a launcher starts."""
    from fretsaw.pipeline.launch import run_request

    if len(argv) != 1:
        raise ValueError(f"stage: {len(argv)} arguments; give the request file that `run` wrote")
    run_request(Path(argv[0]))
