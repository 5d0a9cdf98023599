"""The interaction terms against ones that were planted, and the closed form against brute force."""

import itertools
import random

import numpy as np
import pytest

from fretsaw.puzzle.children.interaction import Interaction, fit_interaction

PARTS = [(layer, name) for layer in range(6) for name in ("gqa1", "attn_none", "ffn32")]


def planted(seed: int, count: int, strength: float) -> tuple[list, dict, np.ndarray]:
    """Return random children whose cost is the norm of a sum of vectors, and their scores."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=20)
    moves = {p: rng.normal(size=20) * rng.uniform(0.1, 1) + strength * common for p in PARTS}
    scores = {p: float(v @ v) for p, v in moves.items()}
    chooser = random.Random(seed)
    children = [chooser.sample(PARTS, chooser.randint(2, 10)) for _ in range(count)]
    measured = [float(np.square(sum(moves[p] for p in child)).sum()) for child in children]
    return children, scores, np.array(measured)


def miss(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float(np.abs(np.log(predicted / measured)).mean())


def test_planted_interactions_are_learned() -> None:
    children, scores, measured = planted(0, 60, strength=0.4)
    fit = fit_interaction(children[:40], scores, measured[:40])
    plain = np.array([sum(scores[p] for p in child) for child in children[40:]])
    corrected = np.array([fit.predict(child, scores) for child in children[40:]])
    assert miss(corrected, measured[40:]) < 0.5 * miss(plain, measured[40:])
    assert any(term > 0 for term in fit.pairs.values())


def test_left_out_predictions_are_of_fits_without_that_child() -> None:
    children, scores, measured = planted(1, 12, strength=0.3)
    fit = fit_interaction(children, scores, measured)
    # the prediction for the first from the formula, by brute force over the same grid
    from fretsaw.puzzle.children import interaction as module

    found = []
    for single, pair, noise in itertools.product(module.SINGLES, module.PAIRS, module.NOISE):

        def kernel(a: list, b: list, single: float = single, pair: float = pair) -> float:
            both = [scores[p] for p in a if p in b]
            pairs = sum(x * y for x, y in itertools.combinations(both, 2))
            return single**2 * sum(x * x for x in both) + pair**2 * pairs

        sums = np.array([sum(scores[p] for p in child) for child in children])
        others = range(1, len(children))
        gram = np.array([[kernel(children[i], children[j]) for j in others] for i in others])
        alpha = np.linalg.solve(gram + np.diag((noise * sums[1:]) ** 2), measured[1:] - sums[1:])
        row = np.array([kernel(children[0], children[j]) for j in others])
        found.append(sums[0] + row @ alpha)
    assert min(abs(x - fit.left_out[0]) for x in found) < 1e-8 * measured[0]


def test_predictions_of_the_fit_are_its_terms() -> None:
    children, scores, measured = planted(2, 20, strength=0.3)
    fit = fit_interaction(children, scores, measured)
    predicted = np.array([fit.predict(child, scores) for child in children])
    plain = np.array([sum(scores[p] for p in child) for child in children])
    assert miss(predicted, measured) < miss(plain, measured)


def test_additive_children_stay_as_they_are() -> None:
    scores = {part: 0.1 * (i + 1) for i, part in enumerate(PARTS)}
    chooser = random.Random(0)
    children = [chooser.sample(PARTS, 4) for _ in range(10)]
    measured = np.array([sum(scores[p] for p in child) for child in children])
    fit = fit_interaction(children, scores, measured)
    assert fit.left_out == pytest.approx(measured)
    assert all(abs(term) < 1e-9 for term in (*fit.singles.values(), *fit.pairs.values()))


def test_what_was_not_measured_has_no_terms() -> None:
    fit = Interaction({(0, "a"): 0.5}, {((0, "a"), (1, "b")): -0.25}, np.zeros(0))
    scores = {(0, "a"): 1.0, (1, "b"): 2.0, (2, "c"): 4.0}
    assert fit.predict([(0, "a"), (1, "b")], scores) == 3.25
    assert fit.predict([(0, "a"), (2, "c")], scores) == 5.5
