"""The page's second half: the table from parent to reinforced model, the curve, the transcripts."""

from pathlib import Path

import pytest
from support import answer_row

from fretsaw.report.figures import draw_throughput
from fretsaw.report.html import report
from fretsaw.report.model_card import read_findings
from fretsaw.report.reasoning import choose_transcripts
from fretsaw.report.settings import ReportSettings
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import Progress


def make(inputs: dict[str, Path], out: Path) -> str:
    out.mkdir()
    report(ReportSettings(), inputs, StageRun(out, 0, "cpu", "fp32", Progress("report", out)))
    return (out / "report.html").read_text()


def test_the_table_goes_from_parent_to_reinforced(
    with_reasoner: dict[str, Path], tmp_path: Path
) -> None:
    page = make(with_reasoner, tmp_path / "out")
    section = page[page.index('<section id="reasoning">') :]
    places = [section.index(f"<td>{n}</td>") for n in ("parent", "child", "tuned", "reinforced")]
    assert places == sorted(places)
    assert 'aria-label="Mean reward by rollout' in section
    assert "Question 0 &lt;b&gt;?" in section
    assert "2 + 2 = 4" in section
    assert '<p class="right">4</p>' in section
    assert '<p class="wrong">5</p>' in section


def test_a_tuned_model_alone(with_reasoner: dict[str, Path], tmp_path: Path) -> None:
    inputs = {k: v for k, v in with_reasoner.items() if not k.startswith("reasoner")}
    page = make(inputs, tmp_path / "out")
    assert "<td>tuned</td>" in page
    assert "<td>reinforced</td>" not in page
    assert "then reinforced" not in page


def test_transcripts_are_the_first_of_each_kind() -> None:
    rows = [
        answer_row(group, mode, f"{group}", kind=kind)
        for mode in ("on", "off")
        for group, kind in enumerate(("2 steps", "3 steps", "2 steps", "4 steps", "5 steps"))
    ]
    chosen = choose_transcripts(rows)
    assert [t.on.group for t in chosen] == [1, 3, 4]
    assert all(t.on.group == t.off.group for t in chosen)


def test_accuracy_stands_against_answers_a_second(
    with_reasoner: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict] = []
    monkeypatch.setattr("fretsaw.report.plots.throughput", lambda points: drawn.append(points))
    findings = read_findings(with_reasoner)
    draw_throughput(findings)
    (points,) = drawn
    assert list(points) == ["parent", "child", "tuned", "reinforced"]
    # 4 rows of 8 tokens in 40 ms are 800 tokens/s, in 24 ms 1333; an answer takes 20
    assert points["parent"]["on"] == pytest.approx((40.0, 0.8))
    assert points["reinforced"]["off"] == pytest.approx((32 / 0.024 / 20, 0.8))
