"""A figure as inline SVG: text stays text, in the page's font; equal values give equal bytes."""

import html
import io
import re

from matplotlib.figure import Figure

from fretsaw.report.plots.style import VARIABLES


def svg_of(figure: Figure, name: str) -> str:
    """Return the figure as an <svg> element to stand in a page: no size, no ids but used ones."""
    text = _written(figure)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None, "matplotlib writes a viewBox"
    label = html.escape(str(figure.get_label()), quote=True)
    body = _with_own_ids(text[text.index(">") + 1 :], name)
    return f'<svg {view[0]} role="img" aria-label="{label}">{_as_the_page_has_it(body)}'


def _written(figure: Figure) -> str:
    target = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(target, format="svg", transparent=True, metadata=nothing)
    text = target.getvalue()
    return text[text.index("<svg") :].strip()


def _with_own_ids(text: str, name: str) -> str:
    """Begin what ids are used, or say what was chosen, with the figure's name; drop the others."""
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(
        r' id="([\w.-]+)"',
        lambda m: f' id="{name}-{m[1]}"' if m[1] in used or m[1].startswith("chosen") else "",
        text,
    )
    return re.sub(r'(href="|url\()#', rf"\1#{name}-", text)


def _as_the_page_has_it(text: str) -> str:
    """Leave font and colours to the page, and drop what says nothing."""
    text = re.sub(r" ?font-family: [^;\"]*;", "", text)  # the page's font, whichever way it is said
    text = re.sub(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*", r"font: \1\2 var(--sans)", text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would reach the whole page
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", "\n", text)
