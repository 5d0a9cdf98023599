"""How much of the FFNs' contribution the kept channels carry."""

import numpy as np
from matplotlib.figure import Figure

from fretsaw.report.findings import Findings
from fretsaw.report.plots.axes import in_percent, key, number_layers
from fretsaw.report.plots.style import CHILD, PARENT, sheet


def draw_importance(findings: Findings) -> Figure | None:
    """Draw per layer the share of FFN channels kept and of what the parent's contribute.

    None where no channels were ranked, or all were kept.
    """
    shares = [_shares(findings, i) for i in range(len(findings.parent.blocks))]
    kept, carried = ([share[k] for share in shares] for k in (0, 1))
    if not any(kept) or min(kept) >= 1:
        return None
    figure = sheet(2.1, "Share of FFN channels kept and what they contribute")
    axes = figure.subplots()
    at = np.arange(len(kept))
    axes.bar(at - 0.2, kept, 0.38, color=PARENT, label="channels kept")
    axes.bar(at + 0.2, carried, 0.38, color=CHILD, label="contribution they carry")
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.6, len(kept) - 0.4)
    in_percent(axes.yaxis)
    number_layers(axes.xaxis)
    axes.set_xlabel("layer")
    key(figure, axes)
    return figure


def _shares(findings: Findings, i: int) -> tuple[float, float]:
    """Return (channels kept, contribution they carry) of a layer; zeros where it has none."""
    before, after = findings.parent.blocks[i], findings.assembled.blocks[i]
    channels = findings.ranking.get(f"layers.{i}.channels")
    if channels is None or not channels.sum() or not before.intermediate_size:
        return 0.0, 0.0
    ranked = np.sort(channels.astype(np.float64))[::-1]
    kept = after.intermediate_size
    return kept / before.intermediate_size, float(ranked[:kept].sum() / ranked.sum())
