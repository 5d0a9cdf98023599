"""Estimates of a change's KL against replay, and the gradients behind them against autograd."""

from pathlib import Path

import pytest
import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.model.decoder import Decoder
from fretsaw.model.place import Place
from fretsaw.puzzle.library.replay import Frontier, Replay, subblocks
from fretsaw.puzzle.library.sensitivity import (
    Sensitivity,
    head_gradients,
    parts,
    strata,
    write_gradients,
)


@pytest.fixture(scope="module")
def parent(tiny: Path) -> Decoder:
    return checkpoint.load(tiny / "parent").requires_grad_(False)


def windows(tiny: Path, num_rows: int) -> torch.Tensor:
    return torch.from_numpy(
        loader.rows(loader.read_tokens(tiny / "corpus/heldout.npy"), 64, num_rows)
    )


def test_the_mean_of_the_gradients_at_the_head_is_0_and_their_product_is_fishers() -> None:
    """E[g] = 0 and E[g g'] = sum_v p_v w_v w_v' - m m', m = sum_v p_v w_v."""
    torch.manual_seed(0)
    head, hidden = torch.randn(7, 3), torch.randn(2, 3)
    g = head_gradients(hidden, head, strata(2, 20_000, (0,)))
    p = (hidden @ head.mT).softmax(-1)
    mean = p @ head
    fisher = torch.einsum("tv,vi,vj->tij", p, head, head) - mean[:, :, None] * mean[:, None]
    torch.testing.assert_close(g.mean(0), torch.zeros(2, 3), atol=2e-3, rtol=0)
    found = torch.einsum("dti,dtj->tij", g, g) / len(g)
    torch.testing.assert_close(found, fisher, atol=0.03, rtol=0.03)


def test_gradients_are_those_of_the_whole_network(tiny: Path, parent: Decoder, tmp_path) -> None:
    """By autograd from the states after a subblock to the log-probabilities of the same draws."""
    ids = windows(tiny, 2)[:, :-1]
    write_gradients(parent, ids, 3, 0, tmp_path)
    moves, context = subblocks(parent), parent.context(1, 64)
    text = Sensitivity(Frontier(parent, ids, 2), tmp_path)
    at_end = text.gradients(Place(4))
    final = text.frontier.later(8).detach()
    for number in (1, 4, 7):
        state = text.frontier.later(number).detach().requires_grad_()
        x = state
        for move in moves[number:]:
            x = move(x, context)
        torch.testing.assert_close(x.detach(), final, rtol=1e-4, atol=1e-5)
        for draw in range(3):
            (wanted,) = torch.autograd.grad(x, state, at_end[draw].float(), retain_graph=True)
            found = text.gradients(Place.numbered(number))[draw].float()
            error = (found - wanted).norm() / wanted.norm()
            assert error < 0.02, f"{number}: bf16 keeps three digits, but {error} is missing"


def test_a_small_change_is_told_as_replay_tells_it(tiny: Path, parent: Decoder, tmp_path) -> None:
    rows = windows(tiny, 24)
    write_gradients(parent, rows[:, :-1], 16, 0, tmp_path)
    with torch.inference_mode():
        replay = Replay(parent, rows, 8)
        text = Sensitivity(replay.frontier, tmp_path)
        torch.manual_seed(0)
        for number in (1, 3, 6, 8):
            at = Place.numbered(number)
            states = replay.frontier.later(number)
            noise = torch.randn_like(states) * states.std() * 0.01
            kl, estimate = (judge.kl(states + noise, at).mean() for judge in (replay, text))
            assert estimate.item() == pytest.approx(kl.item(), rel=0.2)
            assert text.kl(states, at).mean() == 0
            with_twice = text.kl(states + 2 * noise, at).mean().item()
            assert with_twice == pytest.approx(4 * estimate.item(), rel=1e-3)


def test_parts_that_are_there_stay_and_all_rows_are_in_one(
    tiny: Path, parent: Decoder, tmp_path, monkeypatch
) -> None:
    ids = windows(tiny, 5)[:, :-1]
    write_gradients(parent, ids, 2, 0, tmp_path / "one")
    one = Sensitivity(Frontier(parent, ids, 2), tmp_path / "one")
    size = 2 * 8 * 2 * 64 * parent.config.hidden_size * 2  # two rows, in bf16
    monkeypatch.setattr("fretsaw.puzzle.library.sensitivity.MAX_PART_BYTES", size)
    assert list(parts(parent.config, ids.shape, 2)) == [0, 2, 4]
    write_gradients(parent, ids, 2, 0, tmp_path / "three")
    files = sorted((tmp_path / "three").iterdir())
    assert len(files) == 3
    before = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    write_gradients(parent, ids, 2, 0, tmp_path / "three")
    after = [file.stat().st_mtime_ns for file in files]
    assert (after[0], after[2]) == (before[0], before[2])
    three = Sensitivity(Frontier(parent, ids, 2), tmp_path / "three")
    for at in (Place(2), Place(4)):
        torch.testing.assert_close(
            three.gradients(at).float(), one.gradients(at).float(), rtol=0.02, atol=1e-3
        )
