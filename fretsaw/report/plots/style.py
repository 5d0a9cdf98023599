"""What all figures share: colours, matplotlib's settings, the sheet they are drawn on.

Colours are the page's CSS variables, so a figure follows its light or dark theme. All figures are
drawn and written under `STYLE`: `draw_all` sees to it.
"""

from typing import Any

from matplotlib.figure import Figure

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
DASHED = {"color": MUTED, "lw": 1, "ls": (0, (4, 3))}  # what is aimed at
RING = {"marker": "o", "ls": "", "mfc": "none", "mec": ACCENT, "mew": 2, "ms": 12, "zorder": 5}
DIAMOND = {"marker": "D", "ls": "", "mfc": "none", "mec": ACCENT, "mew": 1.8}  # it was measured


def sheet(height: float, alt: str) -> Figure:
    """Return an empty figure, `height` inches high; `alt` says in words what it shows."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.set_label(alt)
    return figure
