"""A forecast as text for a terminal of 100 columns."""

import textwrap

from fretsaw.distill.budget import USABLE
from fretsaw.plan.forecast import Forecast, StageForecast
from fretsaw.scenario.scenario import MIB
from fretsaw.stage.progress import format_seconds


def render_forecast(forecast: Forecast, *, title: str, price: float | None = None) -> str:
    """Write time, money, tokens and disk of every stage, then memory by phase, then what is amiss.

    `price` is of one device for an hour.
    """
    on = forecast.hardware
    unit = "GPU" if on.device.name != "cpu" else "CPU"
    money = f"{'$':>10}" if price is not None else ""
    lines = [
        f"{title} on {on.device.count} x {on.device.name}",
        f"speeds: {forecast.source}",
        "",
        f"{'stage':<26}{'devices':>8}{'time':>16}{f'{unit}-hours':>11}{money}{'tokens':>10}"
        f"{'disk':>10}",
    ]
    hours = 0.0
    for stage in forecast.stages:
        hours += stage.device_hours
        mark = "" if stage.is_calibrated or not forecast.is_calibrated else "  ~"
        lines.append(
            f"{stage.name:<26}{stage.devices:>8}{format_seconds(stage.seconds):>16}"
            f"{stage.device_hours:>11,.3g}" + _dollars(stage.device_hours, price)
            + f"{_count(stage.work.tokens):>10}{_bytes(stage.work.disk):>10}{mark}"
        )  # fmt: skip
    disk = sum(stage.work.disk for stage in forecast.stages)
    tokens = sum(stage.work.tokens for stage in forecast.stages)
    lines.append(
        f"{'in all':<26}{'':>8}{format_seconds(forecast.seconds):>16}{hours:>11,.3g}"
        + _dollars(hours, price)
        + f"{_count(tokens):>10}{_bytes(disk):>10}"
    )
    lines.append(
        f"(starting a stage takes {forecast.start_s:.1f} s of it; disk: with a run's resume states"
        + ("; ~ untold)" if forecast.is_calibrated else ")")
    )
    lines += ["", *_memory_lines(forecast), *_notes(forecast)]
    return "\n".join(lines)


def _memory_lines(forecast: Forecast) -> list[str]:
    device = forecast.hardware.device
    lines = [
        f"memory on each device, which has {_bytes(device.memory_bytes)}:",
        f"{'stage':<26}{'phase':<10}{'weights':>10}{'activat.':>10}{'optimizer':>10}{'logits':>10}"
        f"{'cache':>10}{'in all':>10}",
    ]
    large = {(stage.name, phase.name) for stage, phase in forecast.too_large()}
    for stage in forecast.stages:
        for phase in stage.work.uses:
            parts = (phase.weights, phase.activations, phase.optimizer, phase.logits, phase.cache)
            lines.append(
                f"{stage.name:<26}{phase.name:<10}"
                + "".join(f"{_bytes(part) if part else '':>10}" for part in (*parts, phase.memory))
                + ("  !" if (stage.name, phase.name) in large else "")
            )
    return lines


def _notes(forecast: Forecast) -> list[str]:
    """Say what does not fit, with the remedy, and what is to be known of stages."""
    notes = []
    for stage, phase in forecast.too_large():
        part = f", {phase.name}" if phase.name else ""
        notes.append(
            f"! {stage.name}{part}: {_bytes(phase.memory)} do not fit {USABLE:.0%} of a "
            f"{forecast.hardware.device.name}; {_remedy(stage)}"
        )
    for note in dict.fromkeys(stage.work.note for stage in forecast.stages):
        names = [stage.name for stage in forecast.stages if stage.work.note == note]
        notes += [f"{', '.join(names)}: {note}"] if note else []
    count = forecast.hardware.count
    if count > 1:
        notes.append(
            f"(on {count} devices with --nproc {count} for what trains and --workers {count} for "
            "what has independent tasks; other stages use one)"
        )
    return ["", *(line for note in notes for line in textwrap.wrap(note, 100))] if notes else []


def _remedy(stage: StageForecast) -> str:
    """Say what helps: less of it, or a device that holds more."""
    larger = "take more devices" if stage.devices > 1 else "take a larger device"
    on_host = "" if stage.devices > 1 else ", or run it with --device cpu on a host that has it"
    return ", or ".join(filter(None, (stage.work.remedy, larger))) + on_host


def _dollars(hours: float, price: float | None) -> str:
    return f"{hours * price:>10,.2f}" if price is not None else ""


def _count(number: float) -> str:
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    for size, suffix in ((1e12, "TB"), (1e9, "GB")):
        if number >= size:
            return f"{number / size:,.3g} {suffix}"
    return f"{number / MIB:,.3g} MiB" if number >= 1e5 else f"{number / 1e3:,.3g} kB"
