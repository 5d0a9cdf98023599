"""The score of every alternative in every layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import bare, number_layers
from fretsaw.report.plots.heat import colour_key, colour_of
from fretsaw.report.plots.style import ACCENT, MUTED, sheet

COLOURS = "cividis_r"
MAX_SCORED = 16  # layers; beyond that a key says what the colours mean

LayerScores = Sequence[
    Mapping[str, Mapping[str, Any]]
]  # kind of subblock -> alternative -> its entry


def draw_scores(findings: Findings) -> Figure:
    """Draw every alternative's score on a log scale, the chosen ones outlined."""
    layers, names = findings.scores["layers"], findings.scored
    rows, norm = [len(own) for own in names.values()], _norm(layers)
    alt = "Score of every alternative by layer, chosen ones outlined"
    figure = sheet(1.3 + 0.3 * sum(rows), alt)
    grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    for k, (axes, kind) in enumerate(zip(grid, names, strict=True)):
        for i, layer in enumerate(layers):
            for row, name, score in _rows(layer[kind], names[kind]):
                _draw_cell(axes, i, row, score, norm, is_labelled=len(layers) <= MAX_SCORED)
                if name == findings.chosen[i][k]:
                    _outline(axes, i, row).set_gid(f"chosen-{i}-{name}")
        _fit(axes, len(layers), names[kind])
    grid[-1].set_xlabel("layer")
    if len(layers) > MAX_SCORED:
        colour_key(figure, norm, COLOURS)
    return figure


def _norm(layers: LayerScores) -> LogNorm:
    entries = [entry for layer in layers for kind in layer.values() for entry in kind.values()]
    values = [entry["score"] for entry in entries if entry["score"] > 0]
    return LogNorm(min(values, default=1e-6), max(max(values, default=1.0), 1e-6))


def _rows(
    entries: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> list[tuple[int, str, float]]:
    """Return (row, name, score) of a layer's alternatives."""
    return [(y, name, entries[name]["score"]) for y, name in enumerate(names) if name in entries]


def _draw_cell(
    axes: Axes, x: int, y: int, score: float, norm: LogNorm, *, is_labelled: bool
) -> None:
    colour = colour_of(score, norm, COLOURS)
    axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, edgecolor="none"))
    if is_labelled:
        is_dark = score > 0 and float(norm(score)) > 0.5
        ink = MUTED if score == 0 else "white" if is_dark else "#111111"
        axes.text(x, y, _short(score), ha="center", va="center", fontsize=8, color=ink)


def _short(score: float) -> str:
    if score == 0:
        return "0"
    return f"{score:.0e}".replace("e-0", "e-") if score < 1e-3 else f"{score:.2g}"


def _outline(axes: Axes, x: int, y: int) -> Rectangle:
    edge = Rectangle((x - 0.45, y - 0.43), 0.9, 0.86, fill=False, edgecolor=ACCENT, lw=2.4)
    edge.set_zorder(3)
    axes.add_patch(edge)
    return edge


def _fit(axes: Axes, num_layers: int, names: Sequence[str]) -> None:
    bare(axes)
    axes.set_xlim(-0.55, num_layers - 0.45)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_yticks(range(len(names)), names)
    number_layers(axes.xaxis)
