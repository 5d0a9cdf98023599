"""What the speed costs: the best child the search knows at every speed, and the chosen one."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import by_powers_and_zero, key
from fretsaw.report.plots.style import ACCENT, DASHED, DIAMOND, MUTED, PARENT, SECOND, sheet

OTHERS = ("v", "^", "<", ">", "x", "+", "1")  # markers of the other searches
SPEEDUPS = (1, 1.25, 1.5, 2, 3, 4, 6, 10, 20, 40, 80)  # that are ticked

Coordinates = tuple[float, float]  # (decode speed-up, sum of scores)


def draw_pareto(findings: Findings) -> Figure | None:
    """Draw the front, what other searches find under the same bounds, and the chosen child.

    The child is drawn as predicted, and as measured where it was benched at the scenario that was
    searched. None where decoding has no predicted time.
    """
    front, others, (_, child_ms) = _front(findings), _others(findings), findings.decode_ms_searched
    if child_ms <= 0 or len(front) < 2:
        return None
    child, measured = _child(findings), _measured(findings)
    figure = sheet(3.6, "Sum of scores against decode speed-up")
    axes = figure.subplots()
    known = [*front, child, *others.values()]
    by_powers_and_zero(axes, [score for _, score in known])
    axes.set_xscale("log")
    _draw_front(axes, front, _wanted(findings))
    _draw_others(axes, others)
    _draw_child(axes, child, measured)
    _tick_speedups(axes, max(measured or 1.0, *(speedup for speedup, _ in known)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("decode speed-up over the parent")
    axes.set_ylabel("sum of scores")
    key(figure, axes, columns=5)
    return figure


def _front(findings: Findings) -> list[Coordinates]:
    parent_ms, _ = findings.decode_ms_searched
    points = [(solution["costs"]["decode_ms"], solution["score"]) for solution in findings.front]
    return [(parent_ms / ms, score) for ms, score in points if ms > 0]


def _others(findings: Findings) -> dict[str, Coordinates]:
    parent_ms, _ = findings.decode_ms_searched
    return {
        row["method"]: (parent_ms / row["costs"]["decode_ms"], row["score"])
        for row in findings.baselines
        if row.get("costs", {}).get("decode_ms")
    }


def _child(findings: Findings) -> Coordinates:
    parent_ms, child_ms = findings.decode_ms_searched
    return parent_ms / child_ms, findings.score


def _measured(findings: Findings) -> float | None:
    is_benched = findings.served["scenario"] == findings.searched_at
    return findings.speed["decode"]["speedup"] if is_benched else None


def _wanted(findings: Findings) -> float | None:
    targets = [verdict.target for verdict in findings.verdicts]
    return max((t.amount for t in targets if t.quantity == "decode"), default=None)


def _draw_front(axes: Axes, front: Sequence[Coordinates], wanted: float | None) -> None:
    points = zip(*sorted(front), strict=True)
    axes.plot(*points, "-o", color=SECOND, ms=4, label="best at each speed")
    axes.plot(1, 0, "s", color=PARENT, ms=9, label="parent", zorder=4, clip_on=False)
    if wanted is not None:
        axes.axvline(wanted, label=f"target {wanted:g}×", **DASHED)


def _draw_others(axes: Axes, others: Mapping[str, Coordinates]) -> None:
    for marker, (method, place) in zip(OTHERS, others.items(), strict=False):
        axes.plot(*place, marker, color=MUTED, ms=6, label=method, clip_on=False)


def _draw_child(axes: Axes, child: Coordinates, measured: float | None) -> None:
    speedup, score = child
    axes.plot(speedup, score, "o", color=ACCENT, ms=9, label="chosen, predicted", zorder=5)
    if measured is not None:
        axes.plot([speedup, measured], [score] * 2, color=ACCENT, lw=1.2)
        axes.plot(measured, score, label="chosen, measured", ms=9, zorder=5, **DIAMOND)


def _tick_speedups(axes: Axes, last: float) -> None:
    ticks = [t for t in SPEEDUPS if t <= last * 1.3]
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([], minor=True)
