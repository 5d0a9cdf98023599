"""The documentation knows every row of every table, and its index every page."""

import re
from pathlib import Path

import fretsaw.model.kinds as subblocks
from fretsaw.checkpoint.export_targets import EXPORT_TARGETS
from fretsaw.grade.grader import GRADERS
from fretsaw.pipeline.kinds import STAGES
from fretsaw.tasks.task import TASKS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def pages() -> dict[str, str]:
    """Return the page of every stage, grader, task, export target and kind of subblock."""
    tables = {
        "stage": STAGES,
        "grader": GRADERS,
        "task": TASKS,
        "export target": EXPORT_TARGETS,
        "kind": {f"{half} {name}": row for (half, name), row in subblocks.KINDS.items()},
    }
    return {
        f"{what} {name}": row.page for what, rows in tables.items() for name, row in rows.items()
    }


def undocumented() -> list[str]:
    """Return what the index leads to no page of."""
    index = (DOCS / "README.md").read_text()
    return [
        what
        for what, page in pages().items()
        if f"]({page})" not in index or not (DOCS / page).is_file()
    ]


def test_everything_in_a_table_has_a_page_in_the_index() -> None:
    assert undocumented() == []


def test_the_pages_name_what_they_are_for() -> None:
    missing = [
        what
        for what, page in pages().items()
        if what.partition(" ")[0] in ("stage", "grader", "task")
        and what.rpartition(" ")[2] not in (DOCS / page).read_text()
    ]
    assert missing == []


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    found = [p.relative_to(DOCS) for p in DOCS.rglob("*.md") if p.parent.name != "log"]
    assert [str(p) for p in found if p.name != "README.md" and f"]({p})" not in index] == []


def texts() -> list[Path]:
    """Return every page of text: at the top, in docs/, and beside what it is about."""
    return [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("*/README.md")]


def test_links_lead_somewhere() -> None:
    links = (
        (page, link)
        for page in texts()
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in link
    )
    assert [f"{page}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_paths_of_files_in_the_docs_exist() -> None:
    form = re.compile(r"\b(?:fretsaw|tests|benchmarks|recipes)/[\w/]+\.py\b")
    named = ((page, path) for page in texts() for path in form.findall(page.read_text()))
    assert [f"{page}: {path}" for page, path in named if not (ROOT / path).is_file()] == []
