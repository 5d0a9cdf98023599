"""The report's figures, as inline SVG: plain values in, text out.

Colours are the page's CSS variables, so a figure follows its light or dark theme; text stays text
and is set in the page's font. Equal values give equal bytes.
"""

import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK, MUTED, FAINT, EMPTY = "#1c2024", "#60646d", "#d9dde2", "#eef0f3"
PARENT, CHILD, ACCENT, SECOND = "#8b939e", "#0072b2", "#d55e00", "#56b4e9"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    FAINT: "--faint",
    EMPTY: "--empty",
    PARENT: "--parent",
    CHILD: "--child",
    ACCENT: "--accent",
    SECOND: "--second",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fretsaw",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
WIDTH = 8.6  # inches; the page scales it to its column
MAX_LABELLED = 24  # layers; beyond that cells are too narrow for figures
MAX_SCORED = 16  # layers; beyond that a key says what the colours mean

STAGES = {"plain": (PARENT, "s"), "repaired": (SECOND, "o"), "trained": (CHILD, "D")}
OTHERS = ("v", "^", "<", ">", "x", "+", "1")  # markers of the other searches

Layers = Sequence[Mapping[str, Mapping[str, float]]]  # subblock -> alternative -> value


def shapes(parent: Sequence[tuple[int, int]], child: Sequence[tuple[int, int]]) -> str:
    """Draw what each layer kept; a layer is (key-value heads, FFN width), 0 for none."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        for k, (axes, title) in enumerate(
            zip(
                figure.subplots(2, 1, sharex=True),
                ("Attention: KV heads", "FFN: width"),
                strict=True,
            )
        ):
            _cells(axes, [one[k] for one in parent], [one[k] for one in child])
            axes.set_title(title)
        axes.set_xlabel("layer")
        return _svg(figure, "shapes", "Per layer, what of the parent's attention and FFN was kept")


def _cells(axes: Axes, parent: Sequence[int], child: Sequence[int]) -> None:
    _bare(axes)
    most, is_labelled = max(*parent, 1), len(parent) <= MAX_LABELLED
    for i, (before, after) in enumerate(zip(parent, child, strict=True)):
        corner, height = (i - 0.42, 0.0), before / most
        axes.add_patch(Rectangle(corner, 0.84, height, facecolor=EMPTY, edgecolor=PARENT, lw=0.8))
        if after:
            axes.add_patch(Rectangle(corner, 0.84, after / most, facecolor=CHILD))
        elif before:
            left, right = i - 0.42, i + 0.42
            axes.plot([left, right, np.nan, left, right], [0, height, np.nan, height, 0],
                      color=ACCENT, lw=1.2)  # fmt: skip
        if is_labelled:
            text, colour = (f"{after:,}", INK) if after else ("none", ACCENT)
            changed = "bold" if after != before else "normal"
            axes.text(i, -0.08, text, ha="center", va="top", fontsize=9, color=colour,
                      fontweight=changed)  # fmt: skip
    axes.set_xlim(-0.6, len(parent) - 0.4)
    axes.set_ylim(-0.34 if is_labelled else -0.05, 1.04)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=MAX_LABELLED, integer=True))


def importance(kept: Sequence[float], contribution: Sequence[float]) -> str:
    """Draw per layer the share of FFN channels kept and of the parent's contribution they carry."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.1), layout="constrained")
        axes = figure.subplots()
        at = np.arange(len(kept))
        axes.bar(at - 0.2, kept, 0.38, color=PARENT, label="channels kept")
        axes.bar(at + 0.2, contribution, 0.38, color=CHILD, label="contribution they carry")
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, 1)
        axes.set_xlim(-0.6, len(kept) - 0.4)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=MAX_LABELLED, integer=True))
        axes.set_xlabel("layer")
        _legend(figure, axes)
        return _svg(figure, "importance", "Share of FFN channels kept and what they contribute")


def score_map(scores: Layers, chosen: Sequence[tuple[str, ...]]) -> str:
    """Draw every alternative's score on a log scale, the chosen ones outlined."""
    values = [v for layer in scores for kind in layer.values() for v in kind.values() if v > 0]
    norm = LogNorm(min(values, default=1e-6), max(max(values, default=1.0), 1e-6))
    names = {kind: _names(layer[kind] for layer in scores) for kind in scores[0]}
    rows = [len(own) for own in names.values()]
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, 1.3 + 0.3 * sum(rows)), layout="constrained")
        grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
        for k, (axes, kind) in enumerate(zip(grid, names, strict=True)):
            _bare(axes)
            for i, layer in enumerate(scores):
                for row, name in enumerate(names[kind]):
                    if name in layer[kind]:
                        is_labelled = len(scores) <= MAX_SCORED
                        _score_cell(axes, i, row, layer[kind][name], norm, is_labelled)
                        if name == chosen[i][k]:
                            _outline(axes, i, row).set_gid(f"chosen-{i}-{name}")
            axes.set_xlim(-0.55, len(scores) - 0.45)
            axes.set_ylim(len(names[kind]) - 0.45, -0.55)
            axes.set_yticks(range(len(names[kind])), names[kind])
            axes.xaxis.set_major_locator(MaxNLocator(nbins=MAX_LABELLED, integer=True))
        grid[-1].set_xlabel("layer")
        if len(scores) > MAX_SCORED:
            _key(figure, norm)
        return _svg(figure, "scores", "Score of every alternative by layer, chosen ones outlined")


def _key(figure: Figure, norm: LogNorm, colours: str = "cividis_r") -> None:
    """Say what the colours mean, by decades, where the cells are too narrow to say it."""
    lowest, highest = (math.log10(end or 1) for end in (norm.vmin, norm.vmax))
    decades = range(math.floor(lowest), math.ceil(highest) + 1)
    steps = {d: float(np.clip(norm(10.0**d), 0, 1)) for d in decades}
    patches = [
        Patch(facecolor=colormaps[colours](share), label=f"{10.0**d:g}")
        for d, share in steps.items()
    ]
    figure.legend(handles=patches, loc="outside upper left", ncols=len(patches), fontsize=9)


def _score_cell(axes: Axes, x: int, y: int, score: float, norm: LogNorm, is_labelled: bool) -> None:
    share = float(norm(score)) if score > 0 else 0.0
    colour = colormaps["cividis_r"](share) if score > 0 else EMPTY
    axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, edgecolor="none"))
    if is_labelled:
        short = f"{score:.0e}".replace("e-0", "e-") if score < 1e-3 else f"{score:.2g}"
        ink = MUTED if score == 0 else "white" if share > 0.5 else "#111111"
        axes.text(x, y, short if score else "0", ha="center", va="center", fontsize=8, color=ink)


def _outline(axes: Axes, x: int, y: int) -> Rectangle:
    edge = Rectangle((x - 0.45, y - 0.43), 0.9, 0.86, fill=False, edgecolor=ACCENT, lw=2.4)
    edge.set_zorder(3)
    axes.add_patch(edge)
    return edge


def errors(by_name: Mapping[str, Sequence[Mapping[str, float]]], what: str) -> str:
    """Draw each alternative's error at every stage of its making: dots layers, marks medians."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * len(by_name)), layout="constrained")
        axes = figure.subplots()
        seen = [stage for stage in STAGES if any(stage in r for s in by_name.values() for r in s)]
        for y, layers in enumerate(by_name.values()):
            medians = []
            for k, stage in enumerate(seen):
                values = [max(row[stage], 1e-9) for row in layers if stage in row]
                if not values:
                    continue
                colour, marker = STAGES[stage]
                at = y + 0.22 * (k - (len(seen) - 1) / 2)
                axes.plot(values, [at] * len(values), ".", color=colour, ms=3, alpha=0.6)
                axes.plot(np.median(values), at, marker, color=colour, ms=6, zorder=4)
                medians.append((float(np.median(values)), at))
            axes.plot(*zip(*medians, strict=True), "-", color=MUTED, lw=0.8, zorder=3)
        for stage in seen:
            axes.plot([], [], STAGES[stage][1], color=STAGES[stage][0], label=stage)
        axes.set_xscale("log")
        axes.set_yticks(range(len(by_name)), list(by_name))
        axes.set_ylim(len(by_name) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(what)
        _legend(figure, axes)
        return _svg(figure, "errors", "Error of every alternative before and after repair")


def joint(pairs: Sequence[tuple[float, float]]) -> str:
    """Draw (sum of two scores, their joint score)."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        _diagonal(axes, [value for pair in pairs for value in pair])
        axes.plot(*zip(*pairs, strict=True), "o", color=CHILD, ms=5, alpha=0.8)
        axes.set_xlabel("sum of the two scores")
        axes.set_ylabel("both replaced at once")
        return _svg(figure, "joint", "Joint scores of pairs against the sum of their scores")


def correction(children: Sequence[Mapping[str, Any]]) -> str:
    """Draw each child's measured KL against the sum of its scores and against what was corrected.

    A child has `sum`, `corrected`, `measured`, `stderr` and `is_chosen`.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        measured = [child["measured"] for child in children]
        bars = [1.96 * child["stderr"] for child in children]
        keys = ("sum", "corrected")
        _diagonal(axes, [*measured, *(child[k] for child in children for k in keys)])
        for key, colour, marker, label in (
            ("sum", PARENT, "s", "sum of scores"),
            ("corrected", CHILD, "o", "corrected, fitted on the others"),
        ):
            axes.errorbar([child[key] for child in children], measured, bars, fmt=marker, ms=5,
                          color=colour, elinewidth=0.8, label=label)  # fmt: skip
        chosen = [child for child in children if child["is_chosen"]]
        axes.plot([c["corrected"] for c in chosen], [c["measured"] for c in chosen], "o",
                  mfc="none", mec=ACCENT, mew=2, ms=12, label="chosen", zorder=5)  # fmt: skip
        axes.set_xlabel("predicted KL of a child, nats a token")
        axes.set_ylabel("measured")
        _legend(figure, axes)
        return _svg(figure, "correction", "Measured KL of whole children against its prediction")


def _diagonal(axes: Axes, values: Sequence[float]) -> None:
    """Scale both axes alike, by powers where they span some, and draw where they are equal."""
    low, high = min(values), max(values)
    is_log = low > 0 and high / low > 5
    if is_log:
        axes.set_xscale("log")
        axes.set_yscale("log")
        ends = low / 1.3, high * 1.3
    else:
        ends = low - 0.05 * (high - low), high + 0.05 * (high - low)
    axes.plot(ends, ends, color=MUTED, lw=1, ls=(0, (4, 3)))
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    for axis in (axes.xaxis, axes.yaxis):
        if is_log:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def pareto(
    front: Sequence[tuple[float, float]],
    child: tuple[float, float],
    measured: float | None,
    others: Mapping[str, tuple[float, float]],
    wanted: float | None,
) -> str:
    """Draw (speed-up, sum of scores) of the front and of the chosen child, predicted and measured.

    `others` are what other searches find under the same bounds, by method; `measured` is None where
    the child was benched at another scenario.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        known = [*front, child, *others.values()]
        smallest = min((y for _, y in known if y > 0), default=1.0)
        axes.set_yscale("symlog", linthresh=smallest, linscale=0.5)
        axes.set_xscale("log")
        points = sorted(front)
        axes.plot(*zip(*points, strict=True), "-o", color=SECOND, ms=4, label="best at each speed")
        axes.plot(1, 0, "s", color=PARENT, ms=9, label="parent", zorder=4, clip_on=False)
        if wanted is not None:
            axes.axvline(wanted, color=MUTED, lw=1, ls=(0, (4, 3)), label=f"target {wanted:g}×")
        for marker, (method, place) in zip(OTHERS, others.items(), strict=False):
            axes.plot(*place, marker, color=MUTED, ms=6, label=method, clip_on=False)
        axes.plot(*child, "o", color=ACCENT, ms=9, label="chosen, predicted", zorder=5)
        if measured is not None:
            axes.plot([child[0], measured], [child[1]] * 2, color=ACCENT, lw=1.2)
            axes.plot(measured, child[1], "D", mfc="none", mec=ACCENT, mew=1.8, ms=9, zorder=5,
                      label="chosen, measured")  # fmt: skip
        last = max(measured or 1.0, *(x for x, _ in known))
        ticks = [t for t in (1, 1.25, 1.5, 2, 3, 4, 6, 10, 20, 40, 80) if t <= last * 1.3]
        axes.set_xticks(ticks, [f"{t:g}×" for t in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("decode speed-up over the parent")
        axes.set_ylabel("sum of scores")
        _legend(figure, axes, columns=5)
        return _svg(figure, "pareto", "Sum of scores against decode speed-up")


def fusion(
    front: Sequence[tuple[float, float]], chosen: tuple[float, float], measured: float
) -> str:
    """Draw (milliseconds saved, sum of KLs) of the best groupings, and of the chosen one.

    `measured` is the KL of the chosen groups fused together.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*front, strict=True), "-o", color=SECOND, ms=4, label="best at each saving")
        axes.plot(*chosen, "o", color=ACCENT, ms=9, label="chosen, sum of its groups", zorder=5)
        axes.plot(chosen[0], measured, "D", mfc="none", mec=ACCENT, mew=1.8, ms=9, zorder=5,
                  label="chosen, measured whole")  # fmt: skip
        smallest = min((y for _, y in [*front, chosen] if y > 0), default=1.0)
        axes.set_yscale("symlog", linthresh=smallest, linscale=0.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=min(0.0, *(y for _, y in front)))
        axes.set_xlabel("milliseconds saved")
        axes.set_ylabel("KL, nats a token")
        _legend(figure, axes)
        return _svg(figure, "fusion", "KL against the milliseconds that fusing saves")


def dependency(matrix: Sequence[Sequence[float | None]], groups: Sequence[tuple[int, int]]) -> str:
    """Draw the block-dependency matrix on a log scale, the fused groups (first, last) framed."""
    known = [(i, j, v) for i, row in enumerate(matrix) for j, v in enumerate(row) if v is not None]
    positive = [v for *_, v in known if v > 0]
    norm = LogNorm(min(positive, default=1e-6), max(positive, default=1.0))
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, 0.6 * WIDTH), layout="constrained")
        axes = figure.subplots()
        _bare(axes)
        for i, j, value in known:
            colour = colormaps["cividis"](float(norm(value))) if value > 0 else EMPTY
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=colour, edgecolor="none"))
        for first, last in groups:
            size = last - first + 1
            frame = Rectangle((first - 0.5, first - 0.5), size, size, fill=False)
            frame.set(edgecolor=ACCENT, linewidth=2)
            axes.add_patch(frame)
        axes.set_xlim(-0.5, len(matrix) - 0.5)
        axes.set_ylim(len(matrix) - 0.5, -0.5)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=MAX_LABELLED, integer=True))
        axes.set_xlabel("block that is watched")
        axes.set_ylabel("block that is left out")
        _key(figure, norm, "cividis")
        return _svg(figure, "dependency", "How much each block depends on each earlier one")


def cost_bars(costs: Mapping[str, Mapping[str, float]], fixed: Mapping[str, float]) -> str:
    """Draw milliseconds of every alternative, by phase; `fixed` is what every child pays."""
    rows = {"fixed part": fixed} | dict(costs)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.25 * len(rows)), layout="constrained")
        for axes, phase in zip(
            figure.subplots(1, 2, sharey=True), ("prefill", "decode"), strict=True
        ):
            values = [row[f"{phase}_ms"] for row in rows.values()]
            colours = [PARENT] + [CHILD if n.startswith("ffn") else ACCENT for n in costs]
            bars = axes.barh(range(len(rows)), values, 0.68, color=colours)
            axes.bar_label(bars, [f"{v:.3g}" for v in values], padding=3, fontsize=8, color=MUTED)
            axes.set_yticks(range(len(rows)), list(rows))
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_xlim(0, max(*values, 1e-9) * 1.14)
            axes.grid(axis="y", visible=False)
            axes.set_title(f"{phase}, ms")
        return _svg(figure, "costs", "Milliseconds of every alternative in prefill and decode")


def predicted(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Draw how far predicted times are off: scenario -> phase -> `errors`, `noise`, `child`.

    All are relative; `child` is that of the healed child, None where it was not benched.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + 0.32 * len(rows)), layout="constrained")
        phases = ("prefill", "decode")
        grid = figure.subplots(1, 2, sharey=True, sharex=True)
        for axes, phase in zip(grid, phases, strict=True):
            for y, row in enumerate(rows.values()):
                of = row[phase]
                axes.barh(y, of["noise"], 0.6, color=EMPTY, label="" if y else "noise of one round")
                axes.plot(of["errors"], [y] * len(of["errors"]), "o", color=CHILD, ms=4, alpha=0.7,
                          label="" if y else "child that the fit had not seen")  # fmt: skip
                if of["child"] is not None:
                    axes.plot(of["child"], y, "D", mfc="none", mec=ACCENT, mew=1.8, ms=8,
                              label="the healed child")  # fmt: skip
            axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.grid(axis="y", visible=False)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
            axes.set_title(phase)
        grid[0].set_xlim(left=0)
        _legend(figure, max(grid, key=lambda axes: len(axes.get_legend_handles_labels()[0])))
        return _svg(figure, "predicted", "Error of predicted times by scenario and phase")


def _short(scenario: str) -> str:
    """Return a scenario without what all of a page have in common."""
    return ", ".join(part for part in scenario.split(",") if part[:5] not in ("dtype", "devic"))


def healing(
    training: Sequence[tuple[int, float]],
    heldout: Sequence[tuple[int, float]],
    best: tuple[int, float] | None,
    what: str,
) -> str:
    """Draw the training and held-out figure by step, and the step whose weights were kept."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*training, strict=True), color=SECOND, lw=1.1, label=f"training {what}")
        if heldout:
            points = zip(*heldout, strict=True)
            axes.plot(*points, "-o", color=CHILD, ms=5, label=f"held-out {what}")
        if best is not None:
            axes.plot(*best, "o", mfc="none", mec=ACCENT, mew=2, ms=12, label="kept", zorder=5)
        if all(y > 0 for _, y in [*training, *heldout]):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        axes.set_ylabel(f"{what}, nats a token")
        _legend(figure, axes)
        return _svg(figure, "healing", f"Training and held-out {what} by step of distillation")


def accuracy(by_mode: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Draw accuracy by kind of problem: mode -> model -> kind -> accuracy."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        grid = figure.subplots(1, len(by_mode), sharey=True, squeeze=False)[0]
        for axes, (mode, models) in zip(grid, by_mode.items(), strict=True):
            for name, marker, colour in (("parent", "s", PARENT), ("child", "o", CHILD)):
                if models.get(name):
                    axes.plot(list(models[name]), list(models[name].values()), "-", marker=marker,
                              ms=6, color=colour, label=name, clip_on=False)  # fmt: skip
            axes.set_title(f"reasoning {mode}")
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        _legend(figure, grid[0])
        return _svg(figure, "accuracy", "Task accuracy by kind of problem, parent and child")


def throughput(points: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """Draw (answers a second, accuracy): model -> mode -> point; a line joins a model's modes."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
        axes = figure.subplots()
        colours = (PARENT, CHILD, SECOND, ACCENT)
        for (name, modes), colour in zip(points.items(), colours, strict=False):
            axes.plot(*zip(*modes.values(), strict=True), "-", color=colour, lw=1, alpha=0.6)
            for mode, (x, y) in modes.items():
                fill = colour if mode == "on" else "white"
                axes.plot(x, y, "o", color=colour, mfc=fill, ms=8, mew=1.8, clip_on=False,
                          label=f"{name}, {mode}")  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        axes.set_xlabel("answers a second")
        axes.set_ylabel("accuracy")
        _legend(figure, axes, columns=4)
        return _svg(figure, "throughput", "Accuracy against answers a second, by model and mode")


def reinforcement(
    sampled: Mapping[str, Sequence[tuple[int, float]]],
    heldout: Mapping[str, Sequence[tuple[int, float]]],
) -> str:
    """Draw the mean reward by rollout: mode -> points; sampled answers thin, greedy ones bold."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        colours = {"on": CHILD, "off": ACCENT}
        for mode, points in sampled.items():
            axes.plot(*zip(*points, strict=True), color=colours[mode], lw=1, alpha=0.45,
                      label=f"{mode}, sampled")  # fmt: skip
        for mode, points in heldout.items():
            axes.plot(*zip(*points, strict=True), "-o", color=colours[mode], ms=5,
                      label=f"{mode}, held-out problems, greedy", clip_on=False)  # fmt: skip
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("rollout")
        axes.set_ylabel("reward")
        _legend(figure, axes, columns=4)
        return _svg(figure, "reinforcement", "Mean reward by rollout, reasoning on and off")


# --- what all figures share -----------------------------------------------------------------------


def _names(kinds: Iterable[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for alternatives in kinds for name in alternatives))


def _bare(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9)


def _svg(figure: Figure, name: str, alt: str) -> str:
    """Return the figure as an <svg> element to stand in a page: no size, no ids but used ones."""
    target = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(target, format="svg", transparent=True, metadata=nothing)
    text = target.getvalue()
    text = text[text.index("<svg") :].strip()
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(
        r' id="([\w.-]+)"',
        lambda m: f' id="{name}-{m[1]}"' if m[1] in used or m[1].startswith("chosen") else "",
        text,
    )
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = re.sub(r" ?font-family: [^;\"]*;", "", text)  # the page's font, whichever way it is said
    text = re.sub(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*", r"font: \1\2 var(--sans)", text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would reach the whole page
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None, "matplotlib writes a viewBox"
    label = html.escape(alt, quote=True)
    body = text[text.index(">") + 1 :]
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"\s*\n\s*", "\n", body)
    return f'<svg {view[0]} role="img" aria-label="{label}">{body}'
