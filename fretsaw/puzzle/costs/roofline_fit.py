"""The roofline's constants, fitted on measured times: which efficiency, which latencies."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fretsaw.model.config import ModelConfig
from fretsaw.puzzle.costs.measurements import Measurements
from fretsaw.scenario.hardware import Device
from fretsaw.scenario.roofline import Constants, DeviceWork, fixed_work, seconds, subblock_work
from fretsaw.scenario.scenario import Scenario


@dataclass(frozen=True)
class TimedWork:
    """A measured time of several parts one after another, each with its own roof."""

    works: Sequence[DeviceWork]
    seconds: float


def points_of(
    config: ModelConfig, measured: Measurements, device: str, dtype: str
) -> list[TimedWork]:
    """Return a point for every model, scenario and phase measured on a device in a precision.

    Raises ValueError where nothing was that fits the network, the device and the precision.
    """
    points = []
    for text, names, times in measured.medians(config):
        scenario = Scenario.parse(text)
        if (scenario.device, scenario.dtype) != (device, dtype):
            continue
        for phase, time_ms in times.items():
            works = [subblock_work(config, name, scenario, phase) for name in names]
            points.append(TimedWork([fixed_work(config, scenario, phase), *works], time_ms / 1e3))
    if not points:
        raise ValueError(
            f"--measured: holds no time of this parent's shape with device={device},dtype={dtype}; "
            "give a cost folder of the same parent, device and dtype, or leave it out"
        )
    return points


def fit_roofline(points: Sequence[TimedWork], device: Device, dtype: str) -> Constants:
    """Return the constants with which the points are foreseen best.

    Least squares of log(foreseen / measured) over the logarithms of the four constants, from
    several first guesses at the efficiencies, since which roof binds depends on them. What no
    point tells of (all-reduces, where there are none) keeps the device's estimate.
    """
    import numpy as np
    from scipy.optimize import least_squares

    own = Constants.of(device)

    def constants(logs: Iterable[float]) -> Constants:
        c, b, launch, reduce = (math.exp(x) for x in logs)
        return Constants(
            flops_efficiency=c,
            bandwidth_efficiency=b,
            launch_s=launch * own.launch_s,
            all_reduce_s=reduce * own.all_reduce_s,
        )

    def errors(logs: Iterable[float]) -> list[float]:
        chosen = constants(logs)
        return [
            math.log(sum(seconds(w, device, dtype, chosen) for w in p.works) / p.seconds)
            for p in points
        ]

    guesses = [
        np.log([compute, bandwidth, 1.0, 1.0]) for compute in (0.1, 0.7) for bandwidth in (0.1, 0.7)
    ]
    fits = [least_squares(errors, guess, bounds=(-12.0, 12.0)) for guess in guesses]
    return constants(min(fits, key=lambda fit: fit.cost).x)
