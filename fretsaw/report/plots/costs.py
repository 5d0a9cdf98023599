"""What every alternative costs in time."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fretsaw.report.findings import PHASES, Findings
from fretsaw.report.plots.axes import name_rows
from fretsaw.report.plots.style import ACCENT, CHILD, MUTED, PARENT, sheet

COLOURS = {"attention": ACCENT, "ffn": CHILD}  # by subblock, in the order of the rows


def draw_costs(findings: Findings) -> Figure:
    """Draw milliseconds of all that was scored and is not free, and of what every child pays."""
    costs, fixed = findings.served["alternatives"], findings.served["fixed"]
    shown = {
        name: COLOURS[half]
        for half, names in _halves(findings.scored).items()
        for name in names
        if any(costs.get(name, {}).values())
    }
    rows = {"fixed part": fixed} | {name: costs[name] for name in shown}
    figure = sheet(
        0.9 + 0.25 * len(rows), "Milliseconds of every alternative in prefill and decode"
    )
    for axes, phase in zip(figure.subplots(1, 2, sharey=True), PHASES, strict=True):
        _draw_bars(axes, [row[f"{phase}_ms"] for row in rows.values()], [PARENT, *shown.values()])
        name_rows(axes, list(rows))
        axes.set_title(f"{phase}, ms")
    return figure


def _halves(scored: dict[str, list[str]]) -> dict[str, dict[str, None]]:
    """Return the names of all subblocks, attention first; a block, gqa2+ffn192, names two."""
    blocks = [name.split("+") for name in scored.get("block", [])]
    return {
        half: dict.fromkeys([*scored.get(half, []), *(parts[k] for parts in blocks)])
        for k, half in enumerate(COLOURS)
    }


def _draw_bars(axes: Axes, values: list[float], colours: list[str]) -> None:
    bars = axes.barh(range(len(values)), values, 0.68, color=colours)
    axes.bar_label(bars, [f"{v:.3g}" for v in values], padding=3, fontsize=8, color=MUTED)
    axes.set_xlim(0, max(*values, 1e-9) * 1.14)
