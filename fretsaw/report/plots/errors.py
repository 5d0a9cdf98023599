"""How far every alternative is off at each stage of its making."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import key, name_rows
from fretsaw.report.plots.style import CHILD, MUTED, PARENT, SECOND, sheet

CARE = {"plain": (PARENT, "s"), "repaired": (SECOND, "o"), "trained": (CHILD, "D")}


def draw_errors(findings: Findings) -> Figure | None:
    """Draw every alternative's errors by stage: dots layers, marks medians; None without any."""
    by_name: dict[str, list[dict[str, float]]] = {}
    for (_, name), stages in errors_of(findings).items():
        by_name.setdefault(name, []).append(stages)
    scored = dict.fromkeys(name for names in findings.scored.values() for name in names)
    shown = {name: by_name[name] for name in scored if name in by_name}
    if not shown:
        return None
    figure = sheet(1.1 + 0.3 * len(shown), "Error of every alternative before and after repair")
    axes = figure.subplots()
    seen = stages_of(stages for layers in shown.values() for stages in layers)
    for y, layers in enumerate(shown.values()):
        _draw_row(axes, y, layers, seen)
    for stage in seen:
        axes.plot([], [], CARE[stage][1], color=CARE[stage][0], label=stage)
    axes.set_xscale("log")
    name_rows(axes, list(shown))
    axes.set_xlabel("held-out block error" if findings.trained else "KL, nats a token")
    key(figure, axes)
    return figure


def _draw_row(
    axes: Axes, y: int, layers: Sequence[Mapping[str, float]], stages: Sequence[str]
) -> None:
    medians = []
    for k, stage in enumerate(stages):
        values = [max(row[stage], 1e-9) for row in layers if stage in row]
        if not values:
            continue
        colour, marker = CARE[stage]
        at, median = y + 0.22 * (k - (len(stages) - 1) / 2), float(np.median(values))
        axes.plot(values, [at] * len(values), ".", color=colour, ms=3, alpha=0.6)
        axes.plot(median, at, marker, color=colour, ms=6, zorder=4)
        medians.append((median, at))
    axes.plot(*zip(*medians, strict=True), "-", color=MUTED, lw=0.8, zorder=3)


def errors_of(findings: Findings) -> dict[tuple[int, str], dict[str, float]]:
    """Return how far an alternative is off at each stage of its making, by (layer, name).

    Block errors where `fretsaw bld` measured them, else the KL on the text that judged the repair.
    """
    trained = {place: _trained(row) for place, row in _entries(findings.trained)}
    if trained:
        return trained
    repairs = {place: entry["repair"] for place, entry in _entries(findings.scores)}
    return {place: _repaired(repair) for place, repair in repairs.items() if repair}


def _entries(table: Mapping[str, Any]) -> Iterable[tuple[tuple[int, str], dict[str, Any]]]:
    for i, layer in enumerate(table.get("layers", [])):
        for alternatives in layer.values():
            for name, entry in alternatives.items():
                yield (i, name), entry


def _trained(row: Mapping[str, Any]) -> dict[str, float]:
    stages = {stage: row[stage] for stage in CARE if stage in row}
    return {**stages, "trained": row[row["kept"]]}


def _repaired(repair: Mapping[str, Any]) -> dict[str, float]:
    return {"plain": repair["kl_before"], "repaired": repair["kl_after"]}


def stages_of(errors: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the stages at which any alternative's error is known, in their order."""
    known = {stage for stages in errors for stage in stages}
    return [stage for stage in CARE if stage in known]
