"""Cells coloured by their value on a log scale, and the key to their colours."""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fretsaw.report.plots.style import EMPTY

Colour = str | tuple[float, ...]


def colour_of(value: float, norm: LogNorm, colours: str) -> Colour:
    """Return a value's colour; what is not positive is left empty."""
    return colormaps[colours](float(norm(value))) if value > 0 else EMPTY


def colour_key(figure: Figure, norm: LogNorm, colours: str) -> None:
    """Say what the colours mean, by decades."""
    lowest, highest = (math.log10(end or 1) for end in (norm.vmin, norm.vmax))
    decades = range(math.floor(lowest), math.ceil(highest) + 1)
    steps = {d: float(np.clip(norm(10.0**d), 0, 1)) for d in decades}
    patches = [
        Patch(facecolor=colormaps[colours](share), label=f"{10.0**d:g}")
        for d, share in steps.items()
    ]
    figure.legend(handles=patches, loc="outside upper left", ncols=len(patches), fontsize=9)
