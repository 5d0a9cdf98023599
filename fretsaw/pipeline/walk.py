"""Walk a recipe's stages: skip what is done and valid, redo what is stale, stop at an error."""

import dataclasses
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fretsaw.checkpoint.folder import check
from fretsaw.checkpoint.hub import resolve
from fretsaw.pipeline import launch
from fretsaw.pipeline.agreement import check_files, check_inputs
from fretsaw.pipeline.kinds import CHECKPOINTS, FILES, STAGES, StageKind
from fretsaw.pipeline.recipe import Stage
from fretsaw.stage import artifact, leftovers, own_file, place, whole
from fretsaw.stage.holder import hold, refuse_held
from fretsaw.stage.place import check_place
from fretsaw.stage.progress import format_seconds, say
from fretsaw.stage.settings import override
from fretsaw.stage.workers import HERE, Workers

RUN_FILE = "run.json"
OURS = re.compile(r"\.requests|\..+\.(partial|old|holder|holding|tmp)")  # hidden, in its folder
RUN_SHAPE = {"name": str, "seed": int, "device": str, "dtype": str, "stages": [str]}
RUN_REMEDY = "remove it and give the same command again: what is done stays done"


class StageFailed(Exception):
    """A stage ended with an exit code other than 0, and has said why itself."""

    def __init__(self, name: str, code: int):
        super().__init__(name)
        self.code = code


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What is asked of a whole run; recorded in its folder, so that a resumed run keeps it."""

    name: str  # the recipe, or what is compressed
    out: Path
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    only: str | None = None
    start_from: str | None = None
    force_from: str | None = None
    launcher: str = ""  # of the stages that run in several processes; by default the stage's own
    workers: Workers = HERE  # of the stages whose tasks can be shared out


def apply_overrides(stages: list[Stage], overrides: Sequence[str]) -> list[Stage]:
    """Return the stages with each `stage.key=value` applied."""
    by_name = {stage.name: stage for stage in stages}
    for text in overrides:
        path, equals, value = text.partition("=")
        names = [name for name in by_name if path.startswith(f"{name}.")]
        if not equals or not names:
            raise ValueError(
                f"--set {text}: write STAGE.KEY=VALUE with a stage of {', '.join(by_name)}"
            )
        name = max(names, key=len)
        stage = by_name[name]
        settings = override(stage.settings, path[len(name) + 1 :], value)
        by_name[name] = dataclasses.replace(stage, settings=settings)
    return list(by_name.values())


def resolve_inputs(stage: Stage, stages: Sequence[Stage], out: Path) -> dict[str, Path]:
    """Return the stage's inputs as paths; a list becomes `name`, `name1`, `name2`, ..."""
    kind = STAGES[stage.kind]
    missing = kind.inputs.keys() - kind.optional - stage.inputs.keys()
    unknown = stage.inputs.keys() - kind.inputs.keys()
    if missing or unknown:
        wrong = f"lacks {min(missing)!r}" if missing else f"has an unknown input {min(unknown)!r}"
        raise ValueError(f"stage {stage.name!r} {wrong}; it reads {', '.join(kind.inputs)}")
    names = {other.name for other in stages}
    paths: dict[str, Path] = {}
    for name, value in stage.inputs.items():
        values = value if isinstance(value, list) else [value]
        for i, one in enumerate(values):
            is_stage = isinstance(one, str) and one in names
            is_file = name in FILES
            path = out / one if is_stage else Path(one) if is_file else resolve(one)
            paths[f"{name}{i}" if i else name] = path
    return paths


def run(stages: list[Stage], options: RunOptions, *, dry_run: bool = False) -> None:
    """Run the stages in order, each in a process of its own, while this one holds the folder."""
    out = options.out
    _check_stages(stages, options)
    chosen = _chosen(stages, options)
    check_place(out)
    _check_checkpoints([stage for stage in stages if stage.name in chosen], stages, out)
    if dry_run:
        for folder in (out, *(out / name for name in sorted(chosen))):
            refuse_held(folder, only_reads=True)
        _recorded(out, options)
        print(json.dumps([_resolved(s, stages, options, chosen) for s in stages], indent=2))
        return
    with hold(out.resolve() if out.exists() else out) as ticket:
        for name in chosen:
            refuse_held(out / name, within=ticket)
        _run(stages, options, chosen, ticket)


def _run(stages: list[Stage], options: RunOptions, chosen: set[str], ticket: str) -> None:
    out = options.out
    where = _claim(out, stages, options)
    forced = _forced(stages, options)
    started = time.monotonic()
    for stage in stages:
        if stage.name not in chosen:
            continue
        inputs = resolve_inputs(stage, stages, out)
        for name, path in inputs.items():
            if not path.exists():
                raise ValueError(f"{stage.name}: its input {name} is not there ({path})")
        request = artifact.StageRequest.of(stage.kind, stage.settings, inputs, where["seed"])
        folder = out / stage.name
        artifact.settle(folder)
        force = stage.name in forced
        reason = "forced" if force else artifact.staleness(folder, request)
        if reason is None:
            leftovers.clear(folder)
            say(f"{stage.name}: done")
            continue
        if reason != "absent":
            say(f"{stage.name}: {reason}, so it is made again")
        folder.parent.mkdir(parents=True, exist_ok=True)
        code = launch.start(
            {
                "stage": stage.kind,
                "settings": request.settings,
                "inputs": {name: str(path) for name, path in request.inputs.items()},
                "seed": where["seed"],
                "out": str(folder.absolute()),
                "device": where["device"],
                "dtype": where["dtype"],
                "force": force,
                "workers": dataclasses.asdict(_workers(stage, options)),
                "within": ticket,
            },
            out / ".requests" / f"{stage.name.replace('/', '.')}.json",
            _launcher(stage, options),
        )
        if code != 0:
            raise StageFailed(stage.name, code)
    say(f"{options.name}: all done in {format_seconds(time.monotonic() - started)} -> {out}")
    for stage in stages:
        shown = STAGES[stage.kind].shows
        if shown and stage.name in chosen:
            say(f"the {stage.kind}: {out / stage.name / shown}")


def _launcher(stage: Stage, options: RunOptions) -> str:
    return (options.launcher if STAGES[stage.kind].is_distributed else "") or stage.launcher


def _workers(stage: Stage, options: RunOptions) -> Workers:
    """Return the stage's workers; costs are measured here, unless `cost` alone is told else."""
    kind = STAGES[stage.kind]
    return options.workers if kind.has_workers and kind.workers_in_runs else HERE


def _check_stages(stages: Sequence[Stage], options: RunOptions) -> None:
    names = [stage.name for stage in stages]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"recipe: two stages are named {repeated[0]!r}; names are folders")
    for wanted in (options.only, options.start_from, options.force_from):
        if wanted is not None and wanted not in names:
            raise ValueError(f"{wanted!r}: no such stage; the recipe has {', '.join(names)}")


def _check_checkpoints(chosen: Sequence[Stage], stages: Sequence[Stage], out: Path) -> None:
    """Raise before any work what is wrong with a checkpoint that no stage makes."""
    made = {out / stage.name for stage in stages}
    read_for: dict[Path, list[tuple[StageKind, str]]] = {}  # a large one takes seconds: once each
    for stage in chosen:
        for name, path in resolve_inputs(stage, stages, out).items():
            if name.rstrip("0123456789") in CHECKPOINTS and path not in made:
                read_for.setdefault(path, []).append((STAGES[stage.kind], name))
    for path, uses in read_for.items():
        check(
            path,
            needs_weights=any(kind.reads_weights for kind, _ in uses),
            needs_tokenizer=any(kind.tokenizer_of == name for kind, name in uses),
        )


def _names_from(stages: Sequence[Stage], first: str) -> set[str]:
    names = [stage.name for stage in stages]
    return set(names[names.index(first) :])


def _forced(stages: Sequence[Stage], options: RunOptions) -> set[str]:
    return _names_from(stages, options.force_from) if options.force_from else set()


def _chosen(stages: Sequence[Stage], options: RunOptions) -> set[str]:
    if options.only is not None:
        return {options.only}
    return _names_from(stages, options.start_from or stages[0].name)


def _claim(out: Path, stages: Sequence[Stage], options: RunOptions) -> dict[str, Any]:
    """Record whose run this folder is, with device and precision settled once for all."""
    where = _recorded(out, options)
    if where is None:
        device, dtype = launch.settle(options.device, options.dtype)
        where = {"name": options.name, "seed": options.seed, "device": device, "dtype": dtype}
    known = [name for name in where.get("stages", []) if name not in {s.name for s in stages}]
    out.mkdir(parents=True, exist_ok=True)
    where["stages"] = known + [stage.name for stage in stages]
    where["command"] = shlex.join(["fretsaw", *sys.argv[1:]])
    whole.write_json(out / RUN_FILE, where)
    return where


def _recorded(out: Path, options: RunOptions) -> dict[str, Any] | None:
    """Return what is recorded of a run, None where nothing is yet; only reads.

    Raises `Refused` where it is another run than is asked for, or the folder is not a run's.
    """
    path = out / RUN_FILE
    if not path.is_file():
        if out.exists() and not (out.is_dir() and _is_of_stages(out)):
            raise place.Refused(
                f"{out}: not empty and not a fretsaw run; it is left as it is, choose another --out"
            )
        return None
    where = own_file.read_json(path, RUN_SHAPE, remedy=RUN_REMEDY)
    for key, asked in (("name", options.name), ("seed", options.seed)):
        if where[key] != asked:
            raise place.Refused(
                f"{out}: belongs to a run with {key} {where[key]!r}, not {asked!r}; "
                "choose another --out"
            )
    for key, asked in (("device", options.device), ("dtype", options.dtype)):
        if asked not in ("auto", where[key]):
            raise place.Refused(
                f"{out}: runs with {key} {where[key]}, not {asked}; choose another --out"
            )
    return where


def _is_of_stages(folder: Path) -> bool:
    """Whether all that stands in a folder is results of stages, folders of such, or work on them.

    So stands a run whose `run.json` was removed. An empty folder is nobody's.
    """
    return all(
        bool(OURS.fullmatch(path.name))
        if path.name.startswith(".")
        else path.is_dir() and ((path / artifact.MANIFEST).is_file() or _is_of_stages(path))
        for path in folder.iterdir()
    )


def _resolved(
    stage: Stage, stages: Sequence[Stage], options: RunOptions, chosen: set[str]
) -> dict[str, Any]:
    inputs = resolve_inputs(stage, stages, options.out)
    request = artifact.StageRequest.of(stage.kind, stage.settings, inputs, options.seed)
    if stage.name in chosen:
        check_files(stage.kind, stage.settings, inputs)
    if stage.name not in chosen:
        would = "skip: not asked for"
    elif stage.name in _forced(stages, options):
        would = "run: forced"
    elif not all(path.exists() for path in inputs.values()):
        would = "run: its inputs are made first"
    else:
        check_inputs(stage.kind, stage.settings, inputs)
        reason = artifact.staleness(options.out / stage.name, request)
        would = f"run: {reason}" if reason else "skip: done"
        if reason and artifact.goes_on(options.out / stage.name, request):
            would = "run: go on from where it was"
    return {
        "stage": stage.name,
        "command": stage.kind,
        "would": would,
        "inputs": {name: str(path) for name, path in inputs.items()},
        "settings": request.settings,
    }
