"""Figures of several answers to a problem, by hand."""

from dataclasses import replace

import pytest
from support import answer_row

from fretsaw.eval.task_figures import majority, mode_figures, pass_at


def rows_of(group: int, found: str, right: str) -> list:
    """Return answers to a problem: one a letter of `found`, those that are `right` correct."""
    return [
        replace(answer_row(group, "on", letter), index=i, found=letter, correct=letter == right)
        for i, letter in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("n", "c", "k", "chance"),
    [(4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 1, 4, 1), (4, 0, 4, 0), (4, 4, 1, 1), (5, 2, 2, 0.7)],
)  # fmt: skip
def test_the_chance_that_one_of_k_is_right(n: int, c: int, k: int, chance: float) -> None:
    assert pass_at(n, c, k) == pytest.approx(chance)


def test_the_answer_given_most_often_counts() -> None:
    assert majority(rows_of(0, "abba", "a")) == 1.0  # of two as frequent the first
    assert majority(rows_of(0, "abbc", "a")) == 0.0
    cut = [replace(row, is_finished=row.found != "b") for row in rows_of(0, "abb", "a")]
    assert majority(cut) == 1.0  # cut ones have no vote
    assert majority([replace(row, found="") for row in rows_of(0, "aa", "a")]) == 0.0


def test_the_mean_over_answers_does_not_depend_on_how_many_there_are() -> None:
    """Planted: half of the answers to every problem are right, however many are drawn."""
    for times in (1, 2, 8):
        rows = [row for group in range(6) for row in rows_of(group, "ab" * times, "a")]
        figures = mode_figures(rows)
        assert figures["accuracy"] == 0.5
        assert figures["samples"] == 2 * times
        assert figures["pass_at"][1] == pytest.approx(0.5)
        assert figures["majority"]["accuracy"] == 1.0
    assert list(figures["pass_at"]) == [1, 2, 4, 8, 16]


def test_an_answer_without_a_verdict_enters_no_mean_and_is_counted() -> None:
    right, wrong, open_ = rows_of(0, "a", "a"), rows_of(1, "b", "a"), rows_of(2, "a", "a")
    figures = mode_figures([*right, *wrong, replace(open_[0], is_graded=False)])
    assert (figures["accuracy"], figures["no_verdict"]) == (0.5, pytest.approx(1 / 3))
    assert figures["grades"] == [1.0, 0.0, None]
    nothing = mode_figures([replace(open_[0], is_graded=False)])
    assert (nothing["accuracy"], nothing["interval"]) == (None, None)
