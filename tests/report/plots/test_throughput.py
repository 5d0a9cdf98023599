"""Where a model stands in the figure of accuracy against answers a second."""

from pathlib import Path

import pytest

from fretsaw.report.findings import read_findings
from fretsaw.report.plots.throughput import points_of


def test_accuracy_stands_against_answers_a_second(with_reasoner: dict[str, Path]) -> None:
    points = points_of(read_findings(with_reasoner))
    assert list(points) == ["parent", "child", "tuned", "reinforced"]
    # 4 rows of 8 tokens in 40 ms are 800 tokens/s, in 24 ms 1333; an answer takes 20
    assert points["parent"]["on"] == pytest.approx((40.0, 0.8))
    assert points["reinforced"]["off"] == pytest.approx((32 / 0.024 / 20, 0.8))
