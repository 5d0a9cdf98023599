"""What each layer kept of the parent's attention and FFN."""

from collections.abc import Sequence
from operator import attrgetter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fretsaw.model.kinds import SubblockKind
from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import MAX_LABELLED, bare, number_layers
from fretsaw.report.plots.style import ACCENT, CHILD, EMPTY, INK, PARENT, sheet

PANELS = {  # of a block: its size, 0 for none, and its kind
    "Attention: KV heads": attrgetter("num_key_value_heads", "attention_kind"),
    "FFN: width": attrgetter("intermediate_size", "ffn_kind"),
}
Kept = tuple[int, SubblockKind]


def draw_shapes(findings: Findings) -> Figure:
    """Draw the sizes that each layer had and kept."""
    figure = sheet(3.3, "Per layer, what of the parent's attention and FFN was kept")
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    for axes, (title, half_of) in zip(panels, PANELS.items(), strict=True):
        before, after = (
            [half_of(block) for block in config.blocks]
            for config in (findings.parent, findings.assembled)
        )
        _draw_layers(axes, before, after)
        axes.set_title(title)
    panels[-1].set_xlabel("layer")
    return figure


def _draw_layers(axes: Axes, parent: Sequence[Kept], child: Sequence[Kept]) -> None:
    bare(axes)
    most = max(1, *(size for size, _ in parent))
    is_labelled = len(parent) <= MAX_LABELLED
    for i, ((before, _), (after, kind)) in enumerate(zip(parent, child, strict=True)):
        _draw_kept(axes, i, before / most, after / most, is_empty=not kind.module)
        if is_labelled:
            _label(axes, i, f"{after:,}" if kind.has_size else kind.name, after != before, after)
    axes.set_xlim(-0.6, len(parent) - 0.4)
    axes.set_ylim(-0.34 if is_labelled else -0.05, 1.04)
    axes.set_yticks([])
    number_layers(axes.xaxis)


def _draw_kept(axes: Axes, i: int, before: float, after: float, *, is_empty: bool) -> None:
    """Outline what was there and fill what was kept; cross out what is not there any more."""
    left, right = i - 0.42, i + 0.42
    axes.add_patch(Rectangle((left, 0), 0.84, before, facecolor=EMPTY, edgecolor=PARENT, lw=0.8))
    if after:
        axes.add_patch(Rectangle((left, 0), 0.84, after, facecolor=CHILD))
    elif before and is_empty:
        across = [left, right, np.nan, left, right]
        axes.plot(across, [0, before, np.nan, before, 0], color=ACCENT, lw=1.2)


def _label(axes: Axes, i: int, text: str, is_changed: bool, size: int) -> None:
    colour, weight = INK if size else ACCENT, "bold" if is_changed else "normal"
    place = {"ha": "center", "va": "top", "fontsize": 9}
    axes.text(i, -0.08, text, color=colour, fontweight=weight, **place)
