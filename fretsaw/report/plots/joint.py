"""What two subblocks of a layer score together, against the sum of what each scores alone."""

from matplotlib.figure import Figure

from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import diagonal
from fretsaw.report.plots.style import CHILD, sheet


def draw_joint(findings: Findings) -> Figure | None:
    """Draw joint scores against sums; None where fewer than two pairs were scored."""
    pairs = [(pair["sum"], pair["joint"]) for pair in findings.scores.get("joint", [])]
    pairs = [pair for pair in pairs if min(pair) > 0]
    if len(pairs) < 2:
        return None
    figure = sheet(2.6, "Joint scores of pairs against the sum of their scores")
    axes = figure.subplots()
    diagonal(axes, [value for pair in pairs for value in pair])
    axes.plot(*zip(*pairs, strict=True), "o", color=CHILD, ms=5, alpha=0.8)
    axes.set_xlabel("sum of the two scores")
    axes.set_ylabel("both replaced at once")
    return figure
