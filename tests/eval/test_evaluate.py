"""Evaluation: figures by hand from graded answers, and text figures that need no tokenizer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import answer_row, stage_run

from fretsaw.chat.reasoning import with_reasoning
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.corpus.build import build
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.eval.evaluate import evaluate
from fretsaw.eval.settings import EvalSettings
from fretsaw.eval.task_figures import task_figures
from fretsaw.rollout.rows import read_rows

SETTINGS = EvalSettings(tokens=1024, seq_len=64, num_problems=6, max_new_tokens=8)


def test_figures_by_hand() -> None:
    worked = with_reasoning("2 + 2 = 4", "4")
    answers = [
        answer_row(0, "on", worked),
        replace(answer_row(1, "on", worked, kind="3 steps"), is_finished=False),
        answer_row(0, "off", "4"),
        replace(answer_row(1, "off", "5", kind="3 steps", reward=0.0), fault="tags"),
    ]
    figures = task_figures(answers)
    assert figures["on"]["accuracy"] == 0.5  # cut answers are wrong
    assert figures["on"]["by_kind"] == {"2 steps": 1.0, "3 steps": 0.0}
    assert (figures["on"]["truncated"], figures["on"]["format_faults"]) == (0.5, 0.0)
    assert (figures["off"]["truncated"], figures["off"]["format_faults"]) == (0.0, 0.5)
    assert figures["difference"] == {"gain": 0.0, "interval": (0.0, 0.0)}


def test_an_answer_that_failed_is_wrong_and_told() -> None:
    answers = [answer_row(number, mode, "4") for mode in ("on", "off") for number in range(2)]
    broken = replace(answers[0], is_finished=False, reward=0.0, fault="none", error="not finite")
    figures = task_figures([broken, *answers[1:]])["on"]
    assert (figures["accuracy"], figures["failed"], figures["truncated"]) == (0.5, 0.5, 0.0)
    assert figures["format_faults"] == sum(row.fault is not None for row in answers[1:2]) / 2


def test_several_answers_to_a_problem_are_one_grade() -> None:
    def twice(mode: str) -> list:
        right, wrong = answer_row(0, mode, "4"), answer_row(0, mode, "5", reward=0.0)
        return [right, replace(wrong, index=1)]

    figures = task_figures(twice("on") + twice("off"))
    assert figures["on"]["grades"] == [0.5]
    assert figures["on"]["interval"] == (0.5, 0.5)  # a bootstrap over problems


def test_text_figures_need_no_tokenizer(tiny: Path, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load(tiny / "parent"), tmp_path / "bare")
    inputs = {"model": tmp_path / "bare", "parent": tiny / "parent", "corpus": tiny / "corpus"}
    metrics = evaluate(SETTINGS, inputs, stage_run(tmp_path / "out"))
    assert metrics["kl"] == 0.0
    assert metrics["child_loss"] == metrics["parent_loss"]


def test_tasks_by_name_and_by_file_stand_side_by_side(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    inputs = {"model": tiny / "parent", "problems": path}
    settings = replace(SETTINGS, task="word_problems + word_problems:steps=1")
    metrics = evaluate(settings, inputs, stage_run(tmp_path / "out"))
    assert metrics.keys() == {"accuracy_on", "accuracy_off"}
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["tasks"]) == ["word_problems", "word_problems:steps=1", "mine.jsonl"]
    rows = read_rows(tmp_path / "out/answers-child-0.parquet")
    assert [row.mode for row in rows] == ["on"] * 6 + ["off"] * 6


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tokens": 0}, "tokens: 0; give at least 1"),
        ({"seq_len": -1}, "seq_len: -1; give at least 1"),
        ({"batch_rows": 0}, "batch_rows: 0; give at least 1"),
        ({"num_problems": 0}, "num_problems: 0; lies in 1 to"),
        ({"num_problems": 10**12}, "num_problems: 1000000000000; lies in 1 to"),
        ({"samples": 0}, "samples: 0; give at least 1"),
        ({"max_new_tokens": -1}, "max_new_tokens: -1; give at least 0"),
        ({"temperature": -1.0}, "temperature: -1.0; lies in 0 to 100"),
        ({"temperature": float("nan")}, "temperature: nan; lies in 0 to 100"),
    ],
)
def test_settings_say_what_is_wrong(change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(SETTINGS, **change)


def test_several_greedy_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="4 at temperature 0 are all the same"):
        EvalSettings(samples=4, temperature=0.0)


def test_figures_by_source_are_those_of_its_tokens(tiny: Path, tmp_path: Path) -> None:
    """The whole is the mean over the sources, each weighed by its tokens."""
    inputs = {"parent": tiny / "parent"}
    for key, text in (
        ("data", "Ben met fox number {} in the wood."),
        ("data1", "{} plus 1 is it."),
    ):
        path = inputs[key] = tmp_path / f"{key}.jsonl"
        rows = (json.dumps({"text": text.format(number)}) for number in range(600))
        path.write_text("\n".join(rows))
    corpus = CorpusSettings(max_tokens=20_000, heldout_tokens=3000, seq_len=64)
    build(corpus, inputs, stage_run(tmp_path / "corpus"))
    evaluated = {"model": tiny / "parent", "corpus": tmp_path / "corpus"}
    evaluate(SETTINGS, evaluated, stage_run(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    figures = results["by_source"]
    assert figures.keys() == {"data", "data1"}
    losses = sorted(own["child_loss"] for own in figures.values())
    assert losses[0] < results["child_loss"] < losses[1]
    of_token = np.load(tmp_path / "corpus" / "heldout_sources.npy")[1 : SETTINGS.tokens + 1]
    share = float((of_token == 0).mean())
    mean = share * figures["data"]["child_loss"] + (1 - share) * figures["data1"]["child_loss"]
    assert results["child_loss"] == pytest.approx(mean, rel=0.02)
