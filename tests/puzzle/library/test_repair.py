"""Closed-form repair against the least squares it claims to be."""

import numpy as np
import torch

from fretsaw.puzzle.library.repair import Moments, solve


def moments(x: torch.Tensor, missing: torch.Tensor) -> Moments:
    sums = Moments.zeros(x.shape[1], missing.shape[1], torch.device("cpu"))
    sums.add(x, missing)
    return sums


def test_the_correction_is_the_ridge_solution() -> None:
    x, missing = torch.randn(400, 6).double(), torch.randn(400, 3).double()
    repair = solve(moments(x, missing), moments(x, missing))
    assert repair.ridge is not None
    assert repair.ridge == 1e-4, "on the text it was fitted on, the least ridge is best"
    ridge = repair.ridge * (x.T @ x).diagonal().mean()
    augmented = np.vstack([x.numpy(), np.sqrt(ridge.item()) * np.eye(6)])
    target = np.vstack([missing.numpy(), np.zeros((6, 3))])
    expected = np.linalg.lstsq(augmented, target, rcond=None)[0].T
    np.testing.assert_allclose(repair.correction.numpy(), expected, atol=1e-9)


def test_the_gain_is_the_fall_of_the_heldout_error() -> None:
    x, weight = torch.randn(300, 5).double(), torch.randn(2, 5).double()
    missing = x @ weight.T + 0.1 * torch.randn(300, 2).double()
    fit = moments(x[:200], missing[:200])
    repair = solve(fit, moments(x[200:], missing[200:]))
    assert repair.ridge is not None
    ridge = repair.ridge * fit.gram.diagonal().mean() * torch.eye(5).double()
    by_fit = torch.linalg.solve(fit.gram + ridge, fit.cross.T)
    before = missing[200:].square().sum()
    after = (missing[200:] - x[200:] @ by_fit).square().sum()
    assert abs(repair.gain - (before - after).item()) < 1e-6
    assert after < 0.05 * before


def test_the_chosen_ridge_is_solved_on_both_halves() -> None:
    x, missing = torch.randn(300, 5).double(), torch.randn(300, 2).double()
    missing += x @ torch.randn(5, 2).double()
    repair = solve(moments(x[:200], missing[:200]), moments(x[200:], missing[200:]))
    assert repair.ridge is not None
    gram = x.T @ x
    ridge = repair.ridge * gram.diagonal().mean() * torch.eye(5).double()
    torch.testing.assert_close(repair.correction, torch.linalg.solve(gram + ridge, x.T @ missing).T)


def test_what_does_not_help_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 15, generator=generator).double()
    noise = torch.randn(20, 2, generator=generator).double()
    heldout = torch.randn(200, 15, generator=generator).double()
    repair = solve(moments(x, noise), moments(heldout, -heldout @ torch.ones(15, 2).double()))
    assert repair.gain >= 0
    empty = solve(moments(x * 0, noise), moments(x * 0, noise))
    assert empty.ridge is None
    assert empty.correction.abs().max() == 0
