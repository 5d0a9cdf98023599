"""The model card of the healed child: a view of the findings, as the page is."""

from fretsaw.report.findings import Findings
from fretsaw.report.parent import is_hub_id
from fretsaw.report.template import render


def model_card(findings: Findings) -> str:
    """Return README.md of the healed child, with the front matter the Hub reads."""
    return render("card.md.jinja", f=findings, is_hub=is_hub_id(findings.parent_name))
