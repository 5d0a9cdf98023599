"""Token files, and batches as a function of (seed, step)."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from fretsaw.data import loader

SEQ_LEN = 8


@pytest.fixture
def tokens():
    return np.arange(23 * SEQ_LEN + 5, dtype=np.uint16)  # 23 windows and a remainder


def step_rows(tokens, step, seed=0, batch_size=5):
    return loader.batch(tokens, seed=seed, step=step, batch_size=batch_size, seq_len=SEQ_LEN)


def test_tokenize_stops_at_max_tokens_and_reads_no_further():
    documents = itertools.repeat([1, 97, 98, 99])
    tokens = loader.tokenize(documents, max_tokens=6)
    assert tokens.tolist() == [1, 97, 98, 99, 1, 97]
    assert loader.tokenize(iter([[1, 2], [3]]), max_tokens=6).tolist() == [1, 2, 3]


def test_tokenize_errors():
    with pytest.raises(ValueError, match="no documents, so no tokens"):
        loader.tokenize(iter([]), max_tokens=6)
    with pytest.raises(ValueError, match="max_tokens 0: "):
        loader.tokenize(iter([[1]]), max_tokens=0)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(512, np.uint16), (65536, np.uint16), (65537, np.uint32)]
)
def test_tokens_round_trip_in_the_smallest_dtype(tmp_path, vocab_size, dtype):
    path = tmp_path / "train.npy"
    ids = [0, 5, min(vocab_size, 65536) - 1]
    loader.write_tokens(path, iter(ids), vocab_size)
    tokens = loader.read_tokens(path)
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == dtype
    assert tokens.tolist() == ids
    loader.write_tokens(path, np.array(ids, dtype=np.uint32), vocab_size)
    assert loader.read_tokens(path).tolist() == ids


def test_token_file_errors(tmp_path):
    path = tmp_path / "train.npy"
    with pytest.raises(ValueError, match="no such file; a corpus has"):
        loader.read_tokens(path)
    with pytest.raises(ValueError, match="no tokens to write"):
        loader.write_tokens(path, [], 512)
    with pytest.raises(ValueError, match=r"ids 3\.\.512 do not fit a vocabulary of 512"):
        loader.write_tokens(path, [3, 512], 512)
    np.save(path, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"float64 of shape \(2, 3\), but a corpus is one flat"):
        loader.read_tokens(path)


def test_a_batch_is_a_function_of_seed_and_step(tokens):
    in_order = [step_rows(tokens, step) for step in range(12)]
    for step in (11, 3, 0, 7):
        np.testing.assert_array_equal(step_rows(tokens, step), in_order[step])
    assert not np.array_equal(step_rows(tokens, 0, seed=1), in_order[0])
    assert in_order[0].shape == (5, SEQ_LEN + 1)
    assert in_order[0].dtype == np.int64


def test_rows_are_windows_with_the_next_token(tokens):
    for row in step_rows(tokens, 4):
        assert row[0] % SEQ_LEN == 0
        np.testing.assert_array_equal(row, np.arange(row[0], row[0] + SEQ_LEN + 1))


@pytest.mark.parametrize("batch_size", [1, 5, 23, 50])
def test_every_window_is_seen_once_an_epoch(tokens, batch_size):
    num_steps = -(-3 * 23 // batch_size)
    batches = [step_rows(tokens, step, batch_size=batch_size) for step in range(num_steps)]
    starts = np.concatenate(batches)[: 3 * 23, 0] // SEQ_LEN
    epochs = starts.reshape(3, 23)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(23), (3, 1)))
    assert not np.array_equal(epochs[0], epochs[1])


def test_rows_are_the_first_in_order(tokens):
    first = loader.rows(tokens, SEQ_LEN, 4)
    assert first.dtype == np.int64
    np.testing.assert_array_equal(first[:, 0], np.arange(4) * SEQ_LEN)
    np.testing.assert_array_equal(first[:, -1], np.arange(1, 5) * SEQ_LEN)
    assert loader.num_windows(tokens, SEQ_LEN) == 23
    assert len(loader.rows(tokens, SEQ_LEN, 23)) == 23


def test_too_little_text(tokens):
    short = tokens[:SEQ_LEN]
    message = "8 tokens, but one row of seq_len 8 needs 9; give more text or lower seq_len"
    with pytest.raises(ValueError, match=message):
        step_rows(short, 0)
    with pytest.raises(ValueError, match=message):
        loader.rows(short, SEQ_LEN, 1)
    with pytest.raises(ValueError, match="24 rows of seq_len 8 asked for, but 189 tokens make 23"):
        loader.rows(tokens, SEQ_LEN, 24)
    assert len(step_rows(tokens[: SEQ_LEN + 1], 0, batch_size=1)) == 1


def test_calibration_takes_all_it_asks_for_or_is_refused(tmp_path: Path) -> None:
    loader.write_tokens(tmp_path / "train.npy", np.arange(33) % 7, 7)
    assert loader.calibration_rows(tmp_path, 8, 16).shape == (2, 9)
    with pytest.raises(ValueError, match=r"33 tokens, 4 rows of seq_len 8, but calibration asks "):
        loader.calibration_rows(tmp_path, 8, 40)
