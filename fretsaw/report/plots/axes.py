"""Axes as more than one figure has them: of layers, of shares, by powers, of named rows."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fretsaw.report.plots.style import DASHED

MAX_LABELLED = 24  # layers; beyond that cells are too narrow for figures


def bare(axes: Axes) -> None:
    """Leave nothing but what is drawn and its labels."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def key(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """Say above the figure what its marks mean."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9)


def number_layers(axis: Axis) -> None:
    """Tick whole layers, as many as can be read."""
    axis.set_major_locator(MaxNLocator(nbins=MAX_LABELLED, integer=True))


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label one row a name, from the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def in_percent(axis: Axis) -> None:
    """Write shares as percent."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))


def up_to_all(axes: Axes) -> None:
    """Scale the upright axis from none to 100 %."""
    axes.set_ylim(0, 1.02)
    in_percent(axes.yaxis)


def in_plain_numbers(axis: Axis) -> None:
    """Write 0.02 and not a power of ten, and nothing between the ticks."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def tick_1_2_5(axis: Axis) -> None:
    """Tick an axis of powers at 1, 2, 5, 10, 20 and so on."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    in_plain_numbers(axis)


def by_powers_and_zero(axes: Axes, values: Sequence[float]) -> None:
    """Scale the upright axis by powers from the smallest positive value, evenly below."""
    smallest = min((value for value in values if value > 0), default=1.0)
    axes.set_yscale("symlog", linthresh=smallest, linscale=0.5)
    in_plain_numbers(axes.yaxis)


def diagonal(axes: Axes, values: Sequence[float]) -> None:
    """Scale both axes alike, by powers where they span some, and draw where they are equal."""
    low, high = min(values), max(values)
    is_log = low > 0 and high / low > 5
    if is_log:
        axes.set_xscale("log")
        axes.set_yscale("log")
        ends = low / 1.3, high * 1.3
    else:
        ends = low - 0.05 * (high - low), high + 0.05 * (high - low)
    axes.plot(ends, ends, **DASHED)
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    for axis in (axes.xaxis, axes.yaxis):
        (tick_1_2_5 if is_log else in_plain_numbers)(axis)
