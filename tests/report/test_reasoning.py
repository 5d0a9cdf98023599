"""The page's second half: the table from parent to reinforced model, the curve, the transcripts."""

from pathlib import Path

from support import answer_row

from fretsaw.report.html import report
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
