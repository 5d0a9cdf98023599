"""How much each block depends on each earlier one: what may be fused."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import bare, number_layers
from fretsaw.report.plots.heat import colour_key, colour_of
from fretsaw.report.plots.style import ACCENT, WIDTH, sheet

COLOURS = "cividis"

Matrix = Sequence[Sequence[float | None]]  # [left out, watched]


def draw_dependency(findings: Findings) -> Figure | None:
    """Draw the block-dependency matrix on a log scale, the fused groups framed.

    None where it was not made.
    """
    dependency = findings.fusion.get("dependency")
    if not dependency:
        return None
    matrix: Matrix = dependency["matrix"]
    norm = _norm(matrix)
    figure = sheet(0.6 * WIDTH, "How much each block depends on each earlier one")
    axes = figure.subplots()
    _draw_cells(axes, matrix, norm)
    for group in findings.fusion["chosen"]["groups"]:
        first, last = group.split("-")
        _frame(axes, int(first), int(last))
    _fit(axes, len(matrix))
    colour_key(figure, norm, COLOURS)
    return figure


def _norm(matrix: Matrix) -> LogNorm:
    positive = [value for row in matrix for value in row if value is not None and value > 0]
    return LogNorm(min(positive, default=1e-6), max(positive, default=1.0))


def _draw_cells(axes: Axes, matrix: Matrix, norm: LogNorm) -> None:
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if value is not None:
                look = {"facecolor": colour_of(value, norm, COLOURS), "edgecolor": "none"}
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **look))


def _frame(axes: Axes, first: int, last: int) -> None:
    size = last - first + 1
    frame = Rectangle((first - 0.5, first - 0.5), size, size, fill=False)
    frame.set(edgecolor=ACCENT, linewidth=2)
    axes.add_patch(frame)


def _fit(axes: Axes, num_blocks: int) -> None:
    bare(axes)
    axes.set_xlim(-0.5, num_blocks - 0.5)
    axes.set_ylim(num_blocks - 0.5, -0.5)
    axes.set_aspect("equal")
    number_layers(axes.xaxis)
    number_layers(axes.yaxis)
    axes.set_xlabel("block that is watched")
    axes.set_ylabel("block that is left out")
