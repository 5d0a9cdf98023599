"""The rewards of reinforcement, rollout by rollout."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import key, up_to_all
from fretsaw.report.plots.style import ACCENT, CHILD, sheet

COLOURS = {"on": CHILD, "off": ACCENT}  # by mode


def draw_reinforcement(findings: Findings) -> Figure | None:
    """Draw the mean reward of sampled answers, thin, and of held-out greedy ones, bold.

    None where there was no reinforcement.
    """
    reasoning = findings.reasoning
    if not reasoning.sampled:
        return None
    figure = sheet(2.9, "Mean reward by rollout, reasoning on and off")
    axes = figure.subplots()
    for mode, points in reasoning.sampled.items():
        look = {"color": COLOURS[mode], "lw": 1, "alpha": 0.45}
        axes.plot(*zip(*points, strict=True), label=f"{mode}, sampled", **look)
    for mode, points in reasoning.heldout.items():
        look = {"color": COLOURS[mode], "ms": 5, "clip_on": False}
        label = f"{mode}, held-out problems, greedy"
        axes.plot(*zip(*points, strict=True), "-o", label=label, **look)
    up_to_all(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rollout")
    axes.set_ylabel("reward")
    key(figure, axes, columns=4)
    return figure
