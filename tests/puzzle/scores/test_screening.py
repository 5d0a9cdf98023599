"""How estimates are read where a few alternatives are replayed."""

from pathlib import Path

import numpy as np
import pytest

from fretsaw.puzzle.scores.scoreboard import Scoreboard
from fretsaw.puzzle.scores.screening import anchors, as_replayed, bring_to_scale


def test_estimates_are_read_by_what_the_replayed_came_to() -> None:
    known = [(1e-4, 1e-4), (1e-2, 0.8e-2), (1.0, 0.2)]
    found = as_replayed(np.array([1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 2.0, 0.0]), known)
    middle = [1e-3 * 0.8**0.5, 0.1 * 0.16**0.5]  # half way in log(estimate)
    assert found == pytest.approx([1e-6, 1e-4, middle[0], 8e-3, middle[1], 0.2, 0.4, 0.0])
    assert as_replayed(np.array([3.0, -1e-9]), []).tolist() == [3.0, -1e-9]


def test_the_ratio_may_rise_too() -> None:
    known = [(1e-3, 1e-3), (1e-2, 1.2e-2), (0.1, 0.2)]
    found = as_replayed(np.array([1e-3, 1e-2, 0.1, 0.2]), known)
    assert found == pytest.approx([1e-3, 1.2e-2, 0.2, 0.4])


def test_a_noisy_pair_does_not_turn_the_ratio_round() -> None:
    known = [(1.0, 0.9), (2.0, 1.0), (3.0, 2.7), (4.0, 2.0)]
    ratios = as_replayed(np.array([1.0, 2.0, 3.0, 4.0]), known) / [1, 2, 3, 4]
    assert np.all(np.diff(ratios) <= 1e-12)
    assert ratios[1] == pytest.approx((0.5 * 0.9) ** 0.5)


def test_only_what_is_not_replayed_is_brought_to_scale(tmp_path: Path) -> None:
    board = Scoreboard(tmp_path / "scores.jsonl")
    for number, estimate in enumerate((0.0, 1.0, 2.0, 4.0)):
        figures = {"estimate": [estimate, 3 * estimate]}
        if number in (1, 3):
            figures |= {"kl": [estimate, estimate], "top1": [0.1, 0.1]}
        board.add(0, number, {("x",): {"repair": None, "figures": figures}})
    assert anchors(board) == [(1, ("x",)), (2, ("x",)), (3, ("x",))]
    assert anchors(board, 2) == [(1, ("x",)), (3, ("x",))]
    for _ in range(2):  # twice is once
        bring_to_scale(board)
        assert board.rows[1, ("x",)]["kl"].tolist() == [1.0, 1.0]
        assert board.rows[2, ("x",)]["kl"] == pytest.approx([1.0, 3.0])
        assert board.rows[0, ("x",)]["kl"].tolist() == [0.0, 0.0]
