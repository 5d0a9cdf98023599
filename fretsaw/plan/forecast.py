"""What a recipe will take: memory, time, disk, tokens and money of every stage, before any of it.

Shapes follow from the settings, stage by stage; of the child that a search will find, the one that
keeps most parameters by roofline stands in. The standard library and the search alone: no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fretsaw.distill.budget import USABLE
from fretsaw.pipeline.kinds import STAGES
from fretsaw.pipeline.recipe import Stage, inputs_of
from fretsaw.plan.calibration import Speeds, StageTime, factors, finished_times, start_of
from fretsaw.plan.shapes import ConfigOf, outside, shapes_of
from fretsaw.plan.work import Hardware, MemoryUse, Work
from fretsaw.stage.artifact import read_manifest
from fretsaw.stage.settings import build


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

    def too_large(self) -> Iterator[tuple[StageForecast, MemoryUse]]:
        """Yield the stages, and their phases, that a device can't hold."""
        usable = USABLE * self.hardware.device.memory_bytes
        for stage in self.stages:
            for phase in stage.work.uses:
                if phase.memory > usable:
                    yield stage, phase


def foresee(
    stages: Sequence[Stage],
    hardware: Hardware,
    config_of: ConfigOf,
    calibration: Speeds | None = None,
    *,
    earlier: Path | None = None,
) -> Forecast:
    """Return the forecast of a recipe's stages.

    Shapes are those of an `earlier` run's folder where it has them. Raises `ValueError` for stages
    that contradict one another.
    """
    calibration = calibration or Speeds()
    shapes = shapes_of(stages, hardware, config_of, earlier)
    found = []
    for stage in stages:
        kind = STAGES[stage.kind]
        is_shared = kind.is_distributed or (kind.has_workers and kind.workers_in_runs)
        here = (hardware if is_shared else hardware.alone).multiplying(casts=kind.casts)
        work = kind.load_plan().work(stage.settings, shapes[stage.name], here)
        seconds, is_calibrated = calibration.seconds(stage.kind, work.seconds)
        found.append(StageForecast(stage.name, work, here.count, seconds, is_calibrated))
    return Forecast(hardware, tuple(found), calibration.start_s, calibration.source)


def calibrate(run: Path, hardware: Hardware) -> Speeds:
    """Return what an earlier run on this hardware tells of the speed of its stages."""
    times = finished_times(run)
    in_order = sorted(times, key=lambda name: times[name][1])  # several targets share what is first
    stages = stages_of(run, in_order)
    foreseen = foresee(stages, hardware, outside, earlier=run).stages
    kinds = {stage.name: stage.kind for stage in stages}
    points = [StageTime(kinds[s.name], s.seconds, times[s.name][0]) for s in foreseen]
    return Speeds(factors(points), start_of(times.values()), f"the run in {run}")


def stages_of(run: Path, names: Sequence[str]) -> list[Stage]:
    """Return the finished stages of a run as they were asked for, each after what it reads."""
    found: dict[str, Stage] = {}
    for name in names:
        manifest = read_manifest(run / name)
        inputs: dict[str, str | Path | list[str | Path]] = {}
        for key, entry in manifest["inputs"].items():
            made_by = [one for one in names if str(entry["path"]).endswith(f"/{one}")]
            inputs[key] = max(made_by, key=len, default=str(entry["path"]))
        kind = STAGES[manifest["stage"]]
        known = {key: value for key, value in inputs.items() if key in kind.inputs}
        found[name] = Stage(name, build(kind.settings, manifest["settings"]), known)
    in_order: dict[str, Stage] = {}

    def take(name: str) -> None:
        for _, value in inputs_of(found[name]):
            if value in found:
                take(value)
        in_order.setdefault(name, found[name])

    for name in names:
        take(name)
    return list(in_order.values())
