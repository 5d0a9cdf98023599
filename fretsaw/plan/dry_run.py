"""What one stage would do, without doing it: the same checks up to the first write, then words."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fretsaw.data.sources import read_documents, read_objects
from fretsaw.pipeline.agreement import check_inputs
from fretsaw.pipeline.kinds import FILES, STAGES
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.forecast import foresee
from fretsaw.plan.render import render_forecast
from fretsaw.plan.shapes import outside
from fretsaw.plan.work import Hardware
from fretsaw.stage import artifact


def dry_run(
    name: str, settings: Any, inputs: Mapping[str, Path], *, seed: int, out: Path, device: str
) -> str:
    """Return what a stage would do with these inputs and settings; nothing is written.

    Raises ValueError for what the stage itself would refuse before its first write.
    """
    kind = STAGES[name]
    for key, path in inputs.items():
        if not path.exists():
            raise ValueError(f"{name}: its input {key} is not there ({path})")
    check_inputs(name, settings, inputs)
    if kind.computes and device != "auto":
        from fretsaw.training.precision import check_device

        check_device(device)
    for key, path in inputs.items():
        if key.rstrip("0123456789") in FILES:
            _read_first(name, path)
    request = artifact.StageRequest.of(name, settings, inputs, seed)
    preview = kind.load_preview()
    parts = [
        f"{name}: {kind.summary}",
        *(f"  input {key}: {path}" for key, path in inputs.items()),
        f"  output: {out}: {_outlook(out, request)}",
        *(f"  setting {line}" for line in _changed(settings, kind.settings())),
        _forecast(name, settings, inputs, device),
        *([preview(settings, inputs, seed)] if preview else []),
        "nothing was written",
    ]
    return "\n".join(parts)


def _read_first(stage: str, path: Path) -> None:
    """Raise where a file's first row can't be read."""
    rows = read_documents([str(path)]) if stage == "corpus" else read_objects(path)
    if next(iter(rows), None) is None:
        raise ValueError(f"{path}: nothing in it; give a file with rows")


def _outlook(out: Path, request: artifact.StageRequest) -> str:
    """Return what would become of the output. Raises `Refused` where the stage would."""
    partial = artifact.partial_folder(out)
    if (partial / artifact.MANIFEST).is_file():
        return "complete but for its name, which the command gives it"
    reason = artifact.staleness(out, request)
    if reason is None:
        return "done already, so nothing would run"
    if not (partial / artifact.REQUEST).is_file():
        return "would be made" if reason == "absent" else f"{reason}, so it would be made again"
    before, now = artifact.read_request(partial), request.identity()
    if before == now:
        return f"would go on from {partial}"
    keys = ("stage", "settings", "inputs", "seed")
    changed = [key for key in keys if before.get(key) != now[key]]
    return f"{partial} was begun with other {', '.join(changed)}; it is refused, or begun anew"


def _changed(settings: Any, default: Any) -> Iterator[str]:
    """Yield the settings that are not the default's, with their dotted names."""
    plain = dict(_flat(dataclasses.asdict(default)))
    for key, value in _flat(dataclasses.asdict(settings)):
        if plain.get(key, dataclasses.MISSING) != value:
            yield f"{key} = {value!r}"


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value


def _forecast(name: str, settings: Any, inputs: Mapping[str, Path], device: str) -> str:
    """Return the plan's forecast on the CPU; of another device only a recipe's plan knows."""
    if device not in ("auto", "cpu"):
        return f"  forecast: none for {device} here; see `fretsaw plan`"
    given: dict[str, Any] = {}
    for key, path in inputs.items():
        plain = key.rstrip("0123456789")
        if plain in STAGES[name].several:
            given.setdefault(plain, []).append(str(path))
        else:
            given[key] = str(path)
    try:
        forecast = foresee([Stage(name, settings, given)], Hardware.of("cpu"), outside)
    except ValueError as unknown:
        return f"  forecast: none ({unknown})"
    return render_forecast(forecast, title=f"{name} on the CPU")
