"""What whole children measure, against the sum of their scores and against what was corrected."""

from matplotlib.figure import Figure

from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import diagonal, key
from fretsaw.report.plots.style import CHILD, PARENT, RING, sheet

PREDICTIONS = {
    "sum": (PARENT, "s", "sum of scores"),
    "corrected": (CHILD, "o", "corrected, fitted on the others"),
}


def draw_correction(findings: Findings) -> Figure | None:
    """Draw the KL of the children that were measured whole; None where none was."""
    children = findings.correction.get("children")
    if not children:
        return None
    figure = sheet(3.4, "Measured KL of whole children against its prediction")
    axes = figure.subplots()
    measured = [child["measured"] for child in children]
    bars = [1.96 * child["stderr"] for child in children]
    diagonal(axes, [*measured, *(child[name] for child in children for name in PREDICTIONS)])
    for name, (colour, marker, label) in PREDICTIONS.items():
        predicted = [child[name] for child in children]
        look = {"fmt": marker, "ms": 5, "color": colour, "elinewidth": 0.8}
        axes.errorbar(predicted, measured, bars, label=label, **look)
    chosen = [child for child in children if child["is_chosen"]]
    axes.plot([c["corrected"] for c in chosen], [c["measured"] for c in chosen],
              label="chosen", **RING)  # fmt: skip
    axes.set_xlabel("predicted KL of a child, nats a token")
    axes.set_ylabel("measured")
    key(figure, axes)
    return figure
