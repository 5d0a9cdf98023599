"""The report stage: one self-contained page and a model card from a finished compression.

It reads what the stages left and runs no model. A section whose figures are not there is left out.
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fretsaw.report.figures import draw_all, errors_of
from fretsaw.report.model_card import Findings, Made, environment, model_card, read_findings
from fretsaw.report.plots import STAGES
from fretsaw.report.settings import ReportSettings
from fretsaw.stage.artifact import write_text
from fretsaw.stage.execute import StageRun

PAGE, CARD = "report.html", "README.md"


def report(settings: ReportSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the page and the card."""
    findings = read_findings(inputs)
    page = render_page(settings.title, findings, inputs)
    write_text(run.folder / PAGE, page)
    write_text(run.folder / CARD, model_card(findings))
    return {"html_bytes": len(page.encode())}


def render_page(title: str, findings: Findings, inputs: Mapping[str, Path]) -> str:
    """Return the page; equal artifacts give equal bytes."""
    figures = draw_all(findings, inputs)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            title=title or f"{findings.parent_name}, {findings.target}",
            f=findings,
            figures={name: Markup(svg) for name, svg in figures.items() if svg},
            errors=(errors := errors_of(findings)),
            stages_seen=[s for s in STAGES if any(s in row for row in errors.values())],
            stages=stage_rows(findings.lineage),
            sources=[made for made in findings.lineage if made.manifest is None],
            run_name=_run_name(findings.lineage),
        )
    )


# --- how it was made ------------------------------------------------------------------------------


def stage_rows(lineage: list[Made]) -> list[dict[str, Any]]:
    """Return what the page says of each stage, with the command that makes it again."""
    folders = [made.folder for made in lineage if made.manifest]
    # Recorded paths are shown from the folder the stages share: where that lies is nobody's affair.
    root = Path(os.path.commonpath(folders)) if len(folders) > 1 else folders[0].parent
    return [
        {
            "name": _shown(made.folder, root),
            "hash": made.digest,
            "manifest": made.manifest,
            "settings": flat(made.manifest["settings"]),
            "command": command(made, root),
        }
        for made in lineage
        if made.manifest
    ]


def command(made: Made, root: Path) -> str:
    """Return the command line that makes an artifact again, every setting said."""
    assert made.manifest is not None, "what came from outside has no command"
    manifest, words = made.manifest, ["fretsaw", made.manifest["stage"]]
    data = [_shown(Path(e["path"]), root) for n, e in manifest["inputs"].items() if n[:4] == "data"]
    settings = flat(manifest["settings"])
    for name, entry in manifest["inputs"].items():
        if name == "problems":
            settings["task"] = _shown(Path(entry["path"]), root)
        elif name[:4] != "data":
            words += [f"--{name.replace('_', '-')}", _shown(Path(entry["path"]), root)]
    words += ["--data", *data] if data else []
    for key, value in settings.items():
        words += [f"--{key.rpartition('.')[2].replace('_', '-')}", str(value)]
    words += ["--seed", str(manifest["seed"])]
    for key in ("device", "dtype"):
        words += [f"--{key}", manifest["run"][key]] if key in manifest["run"] else []
    return shlex.join([*words, "--out", _shown(made.folder, root)])


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        nested = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        values |= nested if nested is not None else {f"{prefix}{key}": value}
    return values


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def _run_name(lineage: list[Made]) -> str | None:
    """Return the recipe the stages were made by, where their run says so."""
    for made in lineage:
        for folder in list(made.folder.parents)[:2] if made.manifest else ():
            if (folder / "run.json").is_file():
                name = json.loads((folder / "run.json").read_text())["name"]
                return " ".join(word.rpartition("/")[2] for word in name.split())
    return None
