"""The table of figures and the page that places them."""

import re
from pathlib import Path

import fretsaw.report.html
from fretsaw.report.plots.table import FIGURES


def test_every_figure_has_its_place_on_the_page() -> None:
    page = Path(fretsaw.report.html.__file__).with_name("page.html.jinja").read_text()
    assert re.findall(r'figure\("(\w+)"', page) == list(FIGURES)
