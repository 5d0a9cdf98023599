"""The page from artifacts written by hand: what stands in it, and that it stands alone."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from patience import patient
from safetensors.numpy import save_file

from fretsaw.checkpoint.beside import write_precisions
from fretsaw.checkpoint.folder import read_config
from fretsaw.report.findings import read_findings
from fretsaw.report.html import report
from fretsaw.report.model_card import model_card
from fretsaw.report.settings import ReportSettings
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import Progress

CHILD = [("gqa2", "ffn8"), ("attn_none", "ffn32"), ("gqa1", "ffn_none")]  # as in conftest.py
SECTIONS = {"headline", "layers", "scores", "pareto", "costs", "healing", "task", "made"}
VOID = {"meta", "link", "br", "img", "hr", "input"}


def make(inputs: dict[str, Path], out: Path, title: str = "") -> str:
    out.mkdir()
    run = StageRun(out, 0, "cpu", "fp32", Progress("report", out))
    metrics = report(ReportSettings(title=title), inputs, run)
    page = (out / "report.html").read_bytes()
    assert metrics == {"html_bytes": len(page)}
    return page.decode()


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def sections(page: str) -> set[str]:
    return set(re.findall(r'<(?:section|header) id="(\w+)"', page))


class Balance(HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_whole_page(finished: dict[str, Path], tmp_path: Path) -> None:
    page = make(finished, tmp_path / "out")
    assert sections(page) == SECTIONS
    assert len(page.encode()) < 2_000_000
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "parent &amp; co, 1.5x decode, 90% memory" in page
    assert page.count("<svg") == 11
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_nothing_is_fetched(finished: dict[str, Path], tmp_path: Path) -> None:
    page = make(finished, tmp_path / "out")
    assert "http" not in page
    assert not re.search(r"<(script|link|img|iframe|image)\b|@import|@font-face", page)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))


def test_equal_artifacts_give_equal_bytes(finished: dict[str, Path], tmp_path: Path) -> None:
    first, second = make(finished, tmp_path / "a"), make(finished, tmp_path / "b")
    assert first == second
    assert (tmp_path / "a/README.md").read_bytes() == (tmp_path / "b/README.md").read_bytes()


def test_chosen_alternatives_are_marked(finished: dict[str, Path], tmp_path: Path) -> None:
    page = make(finished, tmp_path / "out")
    outlined = re.findall(r'id="scores-chosen-(\d)-(\w+)"', page)
    assert sorted(outlined) == sorted(
        (str(i), name) for i, pair in enumerate(CHILD) for name in pair
    )
    in_table = re.findall(
        r'class="chosen">(\w+)</td><td class="n">[\d.]+</td><td class="n">\S+ to', page
    )
    assert in_table == [name for pair in CHILD for name in pair]


def test_headline_figures(finished: dict[str, Path], tmp_path: Path) -> None:
    page = make(finished, tmp_path / "out")
    # Table: parent 3 + 3 * (8 + 4) = 39 ms to decode; child 3 + (8 + 1) + 4 + 6 = 22 ms: 1.77x.
    # Memory: parent 0.5 + 3 * 3 = 9.5 MiB; child 0.5 + 2.3 + 1 + 1 = 4.8 MiB: 51 %.
    assert "predicted 1.77×" in page
    assert "1.70×" in page
    assert "4.8 of 9.5 MiB" in page
    # Scores: 0.01 (ffn8, layer 0) + 0.04 (none, layer 1) + 0.03 + 0.06 (layer 2) = 0.14.
    assert "scores add up to 0.140" in page
    assert len(re.findall(r'<li class="reached">', page)) == 2


@pytest.mark.parametrize(
    ("speedup", "status"),
    [
        (1.6, "reached"),
        (1.51, "reached within noise"),
        (1.49, "missed within noise"),
        (1.4, "missed"),
    ],
)
def test_verdict(finished: dict[str, Path], tmp_path: Path, speedup: float, status: str) -> None:
    edit(finished["bench"] / "speed.json", lambda s: s["decode"].update(speedup=speedup))
    assert f'<li class="{status}">1.5x decode' in make(finished, tmp_path / "out")


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("1.5x throughput", "reached</b>, measured 1.67×"),
        ("45ms latency", "missed</b>, measured 48 ms"),
        ("4MiB", "missed</b>, computed 4.8 MiB"),
        ("0.9x params", "reached</b>, computed"),
    ],
)
def test_every_kind_of_target(
    finished: dict[str, Path], tmp_path: Path, target: str, shown: str
) -> None:
    edit(finished["search"] / "forecast.json", lambda f: f.update(target=target))
    assert shown in make(finished, tmp_path / "out")


def test_without_a_task(finished: dict[str, Path], tmp_path: Path) -> None:
    edit(finished["eval"] / "results.json", lambda r: r.pop("tasks"))
    page = make(finished, tmp_path / "out")
    assert sections(page) == SECTIONS - {"task"}
    assert "reasoning on" not in page + (tmp_path / "out/README.md").read_text()


def test_evaluation_of_the_child_alone(finished: dict[str, Path], tmp_path: Path) -> None:
    def keep_child(results: dict) -> None:
        for name in ("parent_loss", "parent_perplexity", "kl", "top1_agreement"):
            del results[name]
        del results["tasks"]["word_problems"]["parent"], results["tasks"]["word_problems"]["kept"]

    edit(finished["eval"] / "results.json", keep_child)
    page = make(finished, tmp_path / "out")
    assert sections(page) == SECTIONS
    assert "Same most likely token" not in page


def test_evaluation_of_nothing(finished: dict[str, Path], tmp_path: Path) -> None:
    (finished["eval"] / "results.json").write_text("{}")
    assert sections(make(finished, tmp_path / "out")) == SECTIONS - {"task"}


def test_ranking_without_ffns(finished: dict[str, Path], tmp_path: Path) -> None:
    save_file({}, finished["ranking"] / "ranking.safetensors")
    page = make(finished, tmp_path / "out")
    assert "ranked by their mean contribution" not in page
    assert "layers" in sections(page)


def test_healing_without_rows(finished: dict[str, Path], tmp_path: Path) -> None:
    (finished["child"] / "metrics.jsonl").unlink()
    page = make(finished, tmp_path / "out")
    assert sections(page) == SECTIONS - {"healing"}
    assert "1.4000" in page  # the loss before, which the manifest knows


def test_healing_that_kept_its_input(finished: dict[str, Path], tmp_path: Path) -> None:
    edit(finished["child"] / "manifest.json", lambda m: m["metrics"].pop("best_step"))
    assert "the child is as assembled" in make(finished, tmp_path / "out")


def test_made_from(finished: dict[str, Path], tmp_path: Path) -> None:
    page = make(finished, tmp_path / "out")
    assert str(tmp_path) not in page  # where it lay is nobody's affair
    assert "1 min 02 s" in page
    assert "1,234 MiB" in page
    command = next(line for line in page.splitlines() if "fretsaw distill " in line)
    assert "--child assemble" in command
    assert "--learning-rate 0.001" in command
    assert command.endswith("--seed 3 --device cpu --dtype bf16 --out distill")


def test_errors_before_and_after(finished: dict[str, Path], tmp_path: Path) -> None:
    page = make(finished, tmp_path / "out")
    row = next(line for line in page.splitlines() if "<td>2</td><td>attention</td>" in line
               and "attn_none" in line)  # fmt: skip
    # score 0.02 * 3, standard error 0.002; KL 0.1 as sliced and 0.04 repaired
    for figure in ("0.0600", "0.0561 to 0.0639", "0.100", "0.0400"):
        assert f">{figure}<" in row
    assert "block distillation" not in page


def test_searches_under_the_same_bounds(finished: dict[str, Path], tmp_path: Path) -> None:
    page = make(finished, tmp_path / "out")
    assert '<td>greedy</td><td class="n">0.350</td><td class="n">2.5</td>' in page
    assert "<td>depth</td><td>found nothing</td>" in page


def test_every_scenario_is_foretold(finished: dict[str, Path], tmp_path: Path) -> None:
    page = make(finished, tmp_path / "out")
    table = re.findall(r"<tr>.*<td>decode</td>.*", page)
    assert len(table) == 2  # batch 4 and batch 1
    assert all("2.5\xa0%" in row and "4.0\xa0%" in row and "3.0\xa0%" in row for row in table)
    assert ["1.70×" in row for row in table] == [True, False]


def test_the_front_is_of_the_scenario_that_was_searched(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    assert "chosen, measured" in make(finished, tmp_path / "same")
    other = "batch=1,in=8,out=8,dtype=fp32,device=cpu"

    def slower(costs: dict) -> None:
        for entry in costs["scenarios"][1]["alternatives"].values():
            entry["decode_ms"] *= 2

    edit(finished["costs"] / "costs.json", slower)
    edit(finished["search"] / "forecast.json", lambda f: f.update(scenario=other))
    findings = read_findings(finished)
    # There the parent takes 3 + 2 * 36 = 75 ms, the child 3 + 2 * 19 = 41 ms.
    assert findings.decode_ms_searched == (75.0, 41.0)
    assert findings.predicted["decode"] == pytest.approx(39 / 22)  # where it was benched
    assert "chosen, measured" not in make(finished, tmp_path / "other")


def test_full_strength(at_full_strength: dict[str, Path], tmp_path: Path) -> None:
    page = make(at_full_strength, tmp_path / "out")
    assert sections(page) == SECTIONS | {"correction"}
    row = next(line for line in page.splitlines() if 'chosen">ffn8<' in line)
    assert [f">{figure}<" in row for figure in ("0.0800", "0.0400", "0.0200")] == [
        True,
        True,
        False,
    ]
    assert "<tr><td>0</td><td>gqa2 + ffn8</td><td>gqa1 + ffn8</td></tr>" in page
    assert "number 1 was best" in page
    balance = Balance()
    balance.feed(page)
    assert balance.open == []


def test_sum_of_a_corrected_table(finished: dict[str, Path], tmp_path: Path) -> None:
    pairs = [
        {"choices": [[0, "ffn8"], [1, "attn_none"]], "score": -0.02},
        {"choices": [[0, "gqa1"], [1, "attn_none"]], "score": 9.0},  # not both chosen
    ]
    edit(finished["search"] / "table.json", lambda t: t.update(pairs=pairs))
    assert "scores add up to 0.120" in make(finished, tmp_path / "out")


def test_whole_blocks(finished: dict[str, Path], tmp_path: Path) -> None:
    def join(table: dict) -> None:
        for i, layer in enumerate(table["layers"]):
            table["layers"][i] = {
                "block": {
                    f"{a}+{f}": {**x, "score": x["score"] + y["score"]}
                    for a, x in layer["attention"].items()
                    for f, y in layer["ffn"].items()
                }
            }

    edit(finished["search"] / "table.json", join)
    edit(finished["scores"] / "scores.json", join)
    page = make(finished, tmp_path / "out")
    assert "scores add up to 0.140" in page
    assert re.findall(r'class="chosen">([^<]+\+[^<]+)<', page) == ["+".join(pair) for pair in CHILD]


def test_missing_file_is_named(finished: dict[str, Path], tmp_path: Path) -> None:
    (finished["bench"] / "speed.json").unlink()
    with pytest.raises(ValueError, match=r"speed\.json: not there"):
        make(finished, tmp_path / "out")


def test_needs_no_torch(finished: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    program = f"""
import sys
from pathlib import Path
sys.modules["torch"] = None
from fretsaw.report.html import report
from fretsaw.report.model_card import model_card
from fretsaw.report.settings import ReportSettings
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import Progress
out = Path({str(out)!r})
inputs = {{n: Path(p) for n, p in { ({n: str(p) for n, p in finished.items()})!r}.items()}}
report(ReportSettings(), inputs, StageRun(out, 0, "cpu", "fp32", Progress("report", out)))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=patient(120))
    assert (out / "report.html").is_file()


def test_a_fused_child_is_told_of(with_fusion: dict[str, Path], tmp_path: Path) -> None:
    page = make(with_fusion, tmp_path / "out")
    assert sections(page) == SECTIONS | {"fusion"}
    assert "layers 0-1, so 3 layers became 2" in page
    assert "1.143×" in page
    assert 'aria-label="How much each block depends on each earlier one"' in page
    assert 'aria-label="KL against the milliseconds that fusing saves"' in page
    card = (tmp_path / "out/README.md").read_text()
    assert "the FFNs of layers 0-1 were fused" in card
    assert "| 2 | gqa2, ffn32 | **gqa1**, **ffn_none** |" in card  # by the parent's layers


def test_a_page_where_nothing_was_fused(with_fusion: dict[str, Path], tmp_path: Path) -> None:
    nothing = {"groups": [], "kl_sum": 0.0, "saved_ms": 0.0}
    edit(
        with_fusion["fused"] / "fusion.json",
        lambda fusion: fusion.update(
            groups=[], front=[nothing], chosen={**nothing, "kl": 0.0}, times={}
        ),
    )
    page = make(with_fusion, tmp_path / "out")
    assert "Nothing: no two FFNs follow each other" in page
    assert 'aria-label="KL against' not in page


def test_the_parent_in_8_bits_stands_beside_the_child(
    with_8_bits: dict[str, Path], tmp_path: Path
) -> None:
    page = make(with_8_bits, tmp_path / "out")
    row = page[page.index("parent in fp8") :].partition("</tr>")[0]
    assert "0.00321" in row
    assert "98.7" in row
    before, after = (float(n) for n in re.findall(r"([\d.]+) of ([\d.]+) MiB", page)[0])
    in_8_bits = float(re.findall(r'class="n">([\d.]+)<', row)[0])
    assert in_8_bits < after, (before, in_8_bits)


def test_what_is_served_in_8_bits_is_told(finished: dict[str, Path], tmp_path: Path) -> None:
    child = read_config(finished["child"])
    blocks = [*child.blocks[:2], child.blocks[2].stored("int8", "full")]
    for name in ("assembled", "child"):
        write_precisions(finished[name], blocks)
    for file in ("search/table.json", "cost/costs.json", "score/scores.json"):
        path = finished["child"].parent / file
        path.write_text(path.read_text().replace('"gqa1"', '"gqa1@int8"'))
    page = make(finished, tmp_path / "out")
    assert "Served with matrices in 8 bits: attention in int8 in layers 2." in page
    assert "**gqa1@int8**" in (tmp_path / "out/README.md").read_text()


def test_costs_by_roofline_are_called_so(finished: dict[str, Path], tmp_path: Path) -> None:
    edit(
        finished["costs"] / "costs.json",
        lambda costs: costs.update(engine="roofline", hardware={"device": "h100"}),
    )
    page = make(finished, tmp_path / "out")
    assert "Costs by roofline of h100." in page
    assert "By roofline at" in page


def test_an_evaluation_that_is_not_the_parents_in_8_bits_is_refused(
    with_8_bits: dict[str, Path], tmp_path: Path
) -> None:
    inputs = {**with_8_bits, "quantised": with_8_bits["eval"]}
    with pytest.raises(ValueError, match="no evaluation of the parent in 8 bits on text"):
        make(inputs, tmp_path / "out")


@pytest.mark.parametrize("mode", ["on", "off"])
def test_models_of_one_mode_have_its_figures_alone(
    finished: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    """A chat model without a toggle is asked in the one mode that it has."""
    other = "off" if mode == "on" else "on"

    def leave_one(results: dict) -> None:
        for figures in results["tasks"].values():
            for model in ("child", "parent"):
                figures[model] = {mode: figures[model][mode]}

    edit(finished["eval"] / "results.json", leave_one)
    page = make(finished, tmp_path / "out")
    assert f"Task, reasoning {mode}" in page
    assert f"<tr><td>{mode}</td>" in page
    assert f"<tr><td>{other}</td>" not in page
    card = model_card(read_findings(finished))
    assert f"task accuracy, reasoning {mode}" in card
    assert f"task accuracy, reasoning {other}" not in card
