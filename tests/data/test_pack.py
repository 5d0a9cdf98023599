"""Packing: every sequence once, rows never overfull, hardly more rows than there must be."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fretsaw.data.pack import batch_of, pack


@given(st.lists(st.integers(1, 64), max_size=200))
def test_rows_hold_every_sequence_once_and_no_row_is_overfull(lengths):
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    # Best-fit decreasing needs at most 11/9 of the fewest rows, and 6/9 of a row more.
    lower_bound = -(-sum(lengths) // 64)
    halves = sum(length > 32 for length in lengths)
    assert len(rows) <= 11 / 9 * max(lower_bound, halves) + 2


def test_best_fit_by_hand():
    # 7 opens a row; 5 does not fit there, opens another; 3 fits both and fills the first; 4 fits
    # the second; 1 fills it.
    assert pack([3, 5, 7, 4, 1], 10) == [[2, 0], [1, 3, 4]]


def test_many_rows_come_close_to_the_lower_bound():
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 50_000).clip(1, 2048).astype(int).tolist()
    assert len(pack(lengths, 2048)) <= 1.0005 * -(-sum(lengths) // 2048)


def test_layout_by_hand():
    sequences = [[5, 6, 7], [8, 9]]
    masks = [[False, True, True], [True, True]]  # the first token of the second is foretold by none
    batch = batch_of(sequences, masks, [[1, 0]], 8)
    assert batch.indices == [1, 0]
    assert batch.token_ids.tolist() == [[8, 9, 5, 6, 7, 0, 0, 0]]
    assert batch.cu_seqlens.tolist() == [0, 2, 5, 8]
    assert batch.positions.tolist() == [0, 2, 3]
    assert batch.targets.tolist() == [9, 6, 7]
    two = batch_of(sequences, masks, [[0], [1]], 3)
    assert two.token_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert two.cu_seqlens.tolist() == [0, 3, 5, 6]
    assert two.positions.tolist() == [0, 1, 3]
