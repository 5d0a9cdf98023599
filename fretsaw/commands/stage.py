"""`fretsaw STAGE`: one stage, whose options are its inputs and its settings' fields."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from fretsaw.commands.bench_server import bench_server
from fretsaw.commands.options import Checkpoint, Common
from fretsaw.commands.search_table import search_table
from fretsaw.stage.workers import HERE, Workers


def stage(name: str, argv: list[str]) -> None:
    """Run one stage from the command line; its options are its settings' fields."""
    from fretsaw.checkpoint.hub import resolve
    from fretsaw.pipeline.agreement import MADE
    from fretsaw.pipeline.kinds import STAGES
    from fretsaw.pipeline.launch import run_stage

    if name == "search" and any(arg.split("=")[0] in ("--library", "--limit") for arg in argv):
        return search_table(argv)
    if name == "bench" and argv and not argv[0].startswith("-"):
        return bench_server(argv)
    kind = STAGES[name]
    fields: list[tuple] = []
    for input_name, text in kind.inputs.items():
        if input_name == "problems":
            continue  # named by --task
        if input_name in kind.several:
            fields.append((input_name, list[str]))
            if input_name in kind.optional:
                fields[-1] += (dataclasses.field(default_factory=list),)
        elif input_name in kind.optional:
            fields.append((input_name, str | None, dataclasses.field(default=None)))
        else:
            fields.append((input_name, str if input_name != kind.positional else Checkpoint))
        fields[-1] = _documented(fields[-1], text)
    fields += [
        ("common", Common),
        ("settings", kind.settings, dataclasses.field(default_factory=kind.settings)),
    ]
    if kind.has_workers:
        fields.append(("workers", Workers, dataclasses.field(default=HERE)))
    cls = dataclasses.make_dataclass(name, fields, kw_only=True)
    description = f"{kind.summary}."
    if name == "search":
        description += (
            " To search a table of other measurements instead: fretsaw search --library TABLE.json "
            "--limit NAME=VALUE --out DIR."
        )
    if name == "bench":
        description += (
            " To measure a server, any that speaks OpenAI's API, or a checkpoint behind ours: "
            "fretsaw bench URL|CHECKPOINT --help."
        )
    if kind.is_distributed:
        description += f" On several processes: torchrun --nproc-per-node 2 -m fretsaw {name} ..."
    options = tyro.cli(
        cls,
        args=argv,
        prog=f"fretsaw {name}",
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
    )
    inputs: dict[str, Path] = {}
    settings = options.settings
    if "problems" in kind.inputs:
        settings, files = _task_files(settings)
        inputs |= files
    for input_name in kind.inputs:
        value = getattr(options, input_name, None)
        if isinstance(value, list):
            inputs |= {f"{input_name}{i or ''}": Path(one) for i, one in enumerate(value)}
        elif value is not None:
            inputs[input_name] = Path(value) if input_name in MADE else resolve(value)
    common = options.common
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


def _task_files(settings: Any) -> tuple[Any, dict[str, Path]]:
    """Take the user's own file out of --task: a file is an input, so that its content counts."""
    names = settings.task.split(" + ")
    files = [name.strip() for name in names if name.strip().endswith((".jsonl", ".parquet"))]
    if len(files) > 1:
        raise ValueError(f"--task {settings.task}: {len(files)} files; give one, or join them")
    task = " + ".join(name for name in names if name.strip() not in files)
    return dataclasses.replace(settings, task=task), {"problems": Path(files[0])} if files else {}


def _documented(field: tuple, text: str) -> tuple:
    name, kind, *default = field
    return (name, Annotated[kind, tyro.conf.arg(help=text)], *default)


def stage_process(argv: list[str]) -> None:
    """Run the stage that a request file describes; what a launcher starts."""
    from fretsaw.pipeline.launch import run_request

    run_request(Path(argv[0]))
