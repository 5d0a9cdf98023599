"""What fusing FFNs saves, and what it costs."""

from matplotlib.figure import Figure

from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import by_powers_and_zero, key
from fretsaw.report.plots.style import ACCENT, DIAMOND, SECOND, sheet


def draw_fusion(findings: Findings) -> Figure | None:
    """Draw (milliseconds saved, sum of KLs) of the best groupings, and of the chosen one.

    The chosen one is drawn once more at its KL when all its groups are fused. None where there was
    nothing to choose.
    """
    front = [(one["saved_ms"], one["kl_sum"]) for one in findings.fusion.get("front", [])]
    if len(front) < 2:
        return None
    chosen = findings.fusion["chosen"]
    saved_ms, kl_sum = chosen["saved_ms"], chosen["kl_sum"]
    figure = sheet(2.9, "KL against the milliseconds that fusing saves")
    axes = figure.subplots()
    axes.plot(*zip(*front, strict=True), "-o", color=SECOND, ms=4, label="best at each saving")
    axes.plot(saved_ms, kl_sum, "o", color=ACCENT, ms=9, label="chosen, sum of its groups",
              zorder=5)  # fmt: skip
    axes.plot(saved_ms, chosen["kl"], label="chosen, measured whole", ms=9, zorder=5, **DIAMOND)
    sums = [kl for _, kl in front]
    by_powers_and_zero(axes, [*sums, kl_sum])
    axes.set_ylim(bottom=min(0.0, *sums))
    axes.set_xlabel("milliseconds saved")
    axes.set_ylabel("KL, nats a token")
    key(figure, axes)
    return figure
