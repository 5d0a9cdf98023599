"""Task accuracy by kind of problem, of parent and child."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fretsaw.chat.reasoning import MODES
from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import key, up_to_all
from fretsaw.report.plots.style import CHILD, PARENT, sheet

LOOKS = {"parent": ("s", PARENT), "child": ("o", CHILD)}


def draw_accuracy(findings: Findings) -> Figure | None:
    """Draw the share of right answers in every mode that was asked for; None without a task."""
    models = {name: findings.task[name] for name in LOOKS if name in findings.task}
    if not models:
        return None
    figure = sheet(2.8, "Task accuracy by kind of problem, parent and child")
    modes = [mode for mode in MODES if any(mode in own for own in models.values())]
    [grid] = figure.subplots(1, len(modes), sharey=True, squeeze=False)
    for axes, mode in zip(grid, modes, strict=True):
        for name, own in models.items():
            if mode in own:
                _draw_kinds(axes, name, own[mode]["by_kind"])
        axes.set_title(f"reasoning {mode}")
        up_to_all(axes)
    key(figure, grid[0])
    return figure


def _draw_kinds(axes: Axes, name: str, by_kind: Mapping[str, Any]) -> None:
    if by_kind:
        marker, colour = LOOKS[name]
        look = {"ls": "-", "marker": marker, "ms": 6, "color": colour, "clip_on": False}
        axes.plot(list(by_kind), list(by_kind.values()), label=name, **look)
