"""How far predicted times are from measured ones, by scenario and phase."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fretsaw.report.findings import PHASES, Findings
from fretsaw.report.plots.axes import in_percent, key, name_rows
from fretsaw.report.plots.style import CHILD, DIAMOND, EMPTY, sheet


def draw_predicted(findings: Findings) -> Figure | None:
    """Draw the errors at children that the fit had not seen, beside the noise, and at the child.

    None where no such children were measured.
    """
    several = findings.costs["scenarios"]
    if not any(errors for served in several for errors in served["left_out_error"].values()):
        return None
    figure = sheet(1.2 + 0.32 * len(several), "Error of predicted times by scenario and phase")
    grid = figure.subplots(1, 2, sharey=True, sharex=True)
    for axes, phase in zip(grid, PHASES, strict=True):
        for y, served in enumerate(several):
            _draw_errors(axes, y, served, f"{phase}_ms")
            if served is findings.served:
                _draw_child(axes, y, findings, phase)
        name_rows(axes, [_short(served["scenario"]) for served in several])
        in_percent(axes.xaxis)
        axes.set_title(phase)
    grid[0].set_xlim(left=0)
    key(figure, max(grid, key=lambda axes: len(axes.get_legend_handles_labels()[0])))
    return figure


def _draw_errors(axes: Axes, y: int, served: Mapping[str, Any], cost: str) -> None:
    errors = list(served["left_out_error"][cost].values())
    noise = served.get("noise_floor", {}).get(cost, 0.0)
    axes.barh(y, noise, 0.6, color=EMPTY, label="" if y else "noise of one round")
    label = "" if y else "child that the fit had not seen"
    axes.plot(errors, [y] * len(errors), "o", color=CHILD, ms=4, alpha=0.7, label=label)


def _draw_child(axes: Axes, y: int, findings: Findings, phase: str) -> None:
    """Draw how far the healed child's predicted speed-up is from the measured one, relative."""
    if phase in findings.speed and phase in findings.predicted:
        error = abs(findings.predicted[phase] / findings.speed[phase]["speedup"] - 1)
        axes.plot(error, y, label="the healed child", ms=8, **DIAMOND)


def _short(scenario: str) -> str:
    """Return a scenario without what all of a page have in common."""
    return ", ".join(part for part in scenario.split(",") if part[:5] not in ("dtype", "devic"))
