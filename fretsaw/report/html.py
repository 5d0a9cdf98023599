"""The report stage: one self-contained page and a model card from a finished compression.

It reads what the stages left and runs no model. A section whose figures are not there is left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fretsaw.report.findings import Findings, read_findings
from fretsaw.report.lineage import run_name, stage_rows
from fretsaw.report.model_card import model_card
from fretsaw.report.plots.errors import errors_of, stages_of
from fretsaw.report.plots.table import draw_all
from fretsaw.report.settings import ReportSettings
from fretsaw.report.template import render
from fretsaw.stage.execute import StageRun
from fretsaw.stage.whole import write_text

PAGE, CARD = "report.html", "README.md"


def report(settings: ReportSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the page and the card."""
    findings = read_findings(inputs)
    page = render_page(settings.title, findings)
    write_text(run.folder / PAGE, page)
    write_text(run.folder / CARD, model_card(findings))
    return {"html_bytes": len(page.encode())}


def render_page(title: str, findings: Findings) -> str:
    """Return the page; equal artifacts give equal bytes."""
    errors = errors_of(findings)
    return render(
        "page.html.jinja",
        title=title or f"{findings.parent_name}, {findings.target}",
        f=findings,
        figures={name: Markup(svg) for name, svg in draw_all(findings).items()},
        errors=errors,
        stages_seen=stages_of(errors.values()),
        stages=stage_rows(findings.lineage),
        sources=[made for made in findings.lineage if made.manifest is None],
        run_name=run_name(findings.lineage),
    )
