"""Settings of the report."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """One self-contained HTML page and a model card from a finished compression."""

    title: str = ""
    """Title of the page; by default the parent's name and the target."""
