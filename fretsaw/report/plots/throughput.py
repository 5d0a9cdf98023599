"""Accuracy against answers a second: what a model is worth where time is short."""

from matplotlib.figure import Figure

from fretsaw.chat.reasoning import MODES
from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import key, tick_1_2_5, up_to_all
from fretsaw.report.plots.style import ACCENT, CHILD, PARENT, SECOND, sheet
from fretsaw.scenario.scenario import Scenario

COLOURS = (PARENT, CHILD, SECOND, ACCENT)  # parent, child, tuned, reinforced

Points = dict[str, dict[str, tuple[float, float]]]  # model -> mode -> (answers a second, accuracy)


def draw_throughput(findings: Findings) -> Figure | None:
    """Draw every model in the modes it has, joined by a line; None without a task."""
    points = points_of(findings)
    if not points:
        return None
    figure = sheet(3.1, "Accuracy against answers a second, by model and mode")
    axes = figure.subplots()
    for (name, modes), colour in zip(points.items(), COLOURS, strict=False):
        axes.plot(*zip(*modes.values(), strict=True), "-", color=colour, lw=1, alpha=0.6)
        for mode, (x, y) in modes.items():
            fill = colour if mode == "on" else "white"
            look = {"color": colour, "mfc": fill, "ms": 8, "mew": 1.8, "clip_on": False}
            axes.plot(x, y, "o", label=f"{name}, {mode}", **look)
    axes.set_xscale("log")
    tick_1_2_5(axes.xaxis)
    up_to_all(axes)
    axes.set_xlabel("answers a second")
    axes.set_ylabel("accuracy")
    key(figure, axes, columns=4)
    return figure


def points_of(findings: Findings) -> Points:
    """Return where every model stands.

    Answers a second are the tokens/s that was measured of parent and child, decoding at the benched
    scenario, over the tokens that an answer takes; later models have the child's speed.
    """
    rows = next(iter(findings.reasoning.tables.values()), None)
    models = {row.name: row.figures for row in rows} if rows else findings.task
    return {
        name: {
            mode: (
                _tokens_per_s(findings, name) / own[mode]["tokens_per_answer"],
                own[mode]["accuracy"],
            )
            for mode in MODES
            if mode in own and own[mode]["tokens_per_answer"]
        }
        for name, own in models.items()
        if any(mode in own for mode in MODES)
    }


def _tokens_per_s(findings: Findings, name: str) -> float:
    served = Scenario.parse(findings.speed["scenario"])
    who = "parent" if name == "parent" else "child"
    return 1e3 * served.batch * served.output_tokens / findings.speed["decode"][f"{who}_ms"]
