"""What the report takes."""

from typing import Any

from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, Shapes, Work


def report(s: Any, at: Shapes, on: Hardware) -> Work:
    """A page from what is on disk."""
    return Work(seconds=1.5, disk=2e6)


REPORT = StagePlan(work=report)
