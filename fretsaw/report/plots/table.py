"""Every figure of the page by its name: a file each, which finds its numbers and draws them.

A new figure is a file with a function from findings to a `Figure` on a `sheet`, or None where there
is nothing to show; a row here; and a line of `page.html.jinja` that places it above its caption.
"""

from collections.abc import Callable

from matplotlib import rc_context
from matplotlib.figure import Figure

from fretsaw.report.findings import Findings
from fretsaw.report.plots.accuracy import draw_accuracy
from fretsaw.report.plots.correction import draw_correction
from fretsaw.report.plots.costs import draw_costs
from fretsaw.report.plots.dependency import draw_dependency
from fretsaw.report.plots.errors import draw_errors
from fretsaw.report.plots.fusion import draw_fusion
from fretsaw.report.plots.healing import draw_healing
from fretsaw.report.plots.importance import draw_importance
from fretsaw.report.plots.joint import draw_joint
from fretsaw.report.plots.pareto import draw_pareto
from fretsaw.report.plots.predicted import draw_predicted
from fretsaw.report.plots.reinforcement import draw_reinforcement
from fretsaw.report.plots.scores import draw_scores
from fretsaw.report.plots.shapes import draw_shapes
from fretsaw.report.plots.style import STYLE
from fretsaw.report.plots.svg import svg_of
from fretsaw.report.plots.throughput import draw_throughput

FIGURES: dict[str, Callable[[Findings], Figure | None]] = {
    "shapes": draw_shapes,
    "importance": draw_importance,
    "scores": draw_scores,
    "errors": draw_errors,
    "joint": draw_joint,
    "correction": draw_correction,
    "pareto": draw_pareto,
    "fusion": draw_fusion,
    "dependency": draw_dependency,
    "costs": draw_costs,
    "predicted": draw_predicted,
    "healing": draw_healing,
    "accuracy": draw_accuracy,
    "throughput": draw_throughput,
    "reinforcement": draw_reinforcement,
}


def draw_all(findings: Findings) -> dict[str, str]:
    """Return every figure that has something to show, by name, as SVG."""
    with rc_context(STYLE):
        drawn = {name: draw(findings) for name, draw in FIGURES.items()}
        return {name: svg_of(figure, name) for name, figure in drawn.items() if figure}
