"""The page's and the card's templates, and how both write a figure."""

from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from fretsaw.report.verdict import Verdict
from fretsaw.scenario.target import Target
from fretsaw.stage.progress import format_seconds


def render(template: str, **values: Any) -> str:
    """Fill in a template beside this file; the page is escaped, the card is Markdown."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= FILTERS
    return env.get_template(template).render(**values)


def count(value: float) -> str:
    """Write a number of parameters or tokens: 583.7 k, 1.64 M, 8.03 B."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * size:  # what rounds to one million is one
            return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value:,.0f}"
    return f"{value:g}"


def percent(value: float, digits: int = 0) -> str:
    """Write a share: 34 %."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def nats(value: float) -> str:
    """Write a loss or a divergence with three digits that count."""
    return "0" if value == 0 else f"{value:.2e}" if abs(value) < 1e-4 else f"{value:#.3g}"


def reached(verdict: Verdict) -> str:
    """Write the figure that decides a target, in the target's unit."""
    match verdict.target.unit:
        case "speedup":
            return f"{verdict.value:.2f}×"
        case "share":
            return percent(verdict.value, 1)
        case "ms":
            return f"{verdict.value:,.0f} ms"
        case _:
            return f"{verdict.value:,.1f} MiB"


def goal(target: Target) -> str:
    """Write what a target asks for, as a heading."""
    return (
        f"{target} memory" if target.unit == "mib" and "memory" not in str(target) else str(target)
    )


FILTERS = {
    "count": count,
    "percent": percent,
    "nats": nats,
    "loss": "{:.4f}".format,
    "median": median,
    "seconds": format_seconds,
    "goal": goal,
    "reached": reached,
}
