"""What distillation gave back, step by step."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import key, tick_1_2_5
from fretsaw.report.plots.style import CHILD, RING, SECOND, sheet

Curve = list[tuple[int, float]]  # (step, nats a token)


def draw_healing(findings: Findings) -> Figure | None:
    """Draw the KL, or else the loss, of training and held out, and the step that was kept.

    None where distillation left no rows.
    """
    is_kl = any("kl" in row for row in findings.healing_rows)
    what, logged, measured = ("KL", "kl", "kl") if is_kl else ("loss", "lm", "loss")
    training = _curve(findings, logged)
    if not training:
        return None
    heldout = _heldout(findings, measured)
    figure = sheet(2.9, f"Training and held-out {what} by step of distillation")
    axes = figure.subplots()
    axes.plot(*zip(*training, strict=True), color=SECOND, lw=1.1, label=f"training {what}")
    if heldout:
        points = zip(*heldout, strict=True)
        axes.plot(*points, "-o", color=CHILD, ms=5, label=f"held-out {what}")
    _ring_kept(axes, heldout, findings.healing.get("best_step", 0))
    if all(y > 0 for _, y in [*training, *heldout]):
        axes.set_yscale("log")
        tick_1_2_5(axes.yaxis)
    axes.set_xlabel("step")
    axes.set_ylabel(f"{what}, nats a token")
    key(figure, axes)
    return figure


def _curve(findings: Findings, name: str) -> Curve:
    return [(row["step"], row[name]) for row in findings.healing_rows if name in row]


def _heldout(findings: Findings, name: str) -> Curve:
    before = findings.healing.get(f"before_{name}")
    start = [] if before is None else [(0, before)]
    return start + _curve(findings, f"heldout_{name}")


def _ring_kept(axes: Axes, heldout: Curve, kept: int) -> None:
    best = next((point for point in heldout if point[0] == kept), None)
    if best is not None:
        axes.plot(*best, label="kept", **RING)
