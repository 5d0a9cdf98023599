"""What one stage would do, without doing it: the same checks up to the first write, then words."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fretsaw.pipeline.agreement import check_files, check_inputs
from fretsaw.pipeline.kinds import STAGES
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.forecast import foresee
from fretsaw.plan.render import render_forecast
from fretsaw.plan.shapes import Unforeseen, outside
from fretsaw.plan.work import Hardware
from fretsaw.stage import artifact
from fretsaw.stage.holder import refuse_held
from fretsaw.stage.place import check_place


def dry_run(
    name: str, settings: Any, inputs: Mapping[str, Path], *, seed: int, out: Path, device: str
) -> str:
    """Return what a stage would do with these inputs and settings; nothing is written.

    Raises ValueError for what the stage itself would refuse before its first write.
    """
    kind = STAGES[name]
    check_place(out)
    for key, path in inputs.items():
        if not path.exists():
            raise ValueError(f"{name}: its input {key} is not there ({path})")
    check_inputs(name, settings, inputs)
    refuse_held(out, only_reads=True)
    if kind.computes and device != "auto":
        from fretsaw.training.precision import check_device

        check_device(device)
    check_files(name, settings, inputs)
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


def _outlook(out: Path, request: artifact.StageRequest) -> str:
    """Return what would become of the output. Raises `Refused` where the stage would."""
    partial = artifact.partial_folder(out)
    if (partial / artifact.MANIFEST).is_file():
        return "complete but for its name, which the command gives it"
    reason = artifact.staleness(out, request)
    if reason is None:
        return "done already, so nothing would run"
    goes_on = artifact.goes_on(out, request)
    if goes_on:
        return f"would go on from {partial}"
    made = "would be made" if reason == "absent" else f"{reason}, so it would be made again"
    lost = f"; {partial} is of another request and would be begun anew" if goes_on is False else ""
    return made + lost


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
    except Unforeseen as unknown:
        return f"  forecast: none ({unknown})"
    return render_forecast(forecast, title=f"{name} on the CPU")
