"""Sequences of different lengths -> rows of one length, with as little padding as may be.

A row holds whole sequences, and attention is told where each begins (`cu_seqlens`). What is learnt
of a sequence is said by a mask over its tokens: those that the model should have foretold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True)
class Batch:
    """Packed rows, and the places in them, laid end to end, that foretell a masked token."""

    indices: list[int]  # of the sequences, in the order of their tokens below
    token_ids: Int64[np.ndarray, "rows row_len"]
    cu_seqlens: Int64[np.ndarray, " documents_plus_1"]  # padding counts as a document of its own
    positions: Int64[np.ndarray, " tokens"]
    targets: Int64[np.ndarray, " tokens"]

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All but the indices: what a forward takes."""
        return self.token_ids, self.cu_seqlens, self.positions, self.targets


def pack(lengths: Sequence[int], row_len: int) -> list[list[int]]:
    """Return rows of indices whose lengths sum to at most `row_len`; every index occurs once.

    Best-fit decreasing: the longest sequence first, each into the row that it fills best. Free room
    is a bit of an integer, so that the best fit is the lowest bit above the length.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(row_len + 1)]  # room -> rows that have it
    rooms = 0  # bit r is set where some row has room r
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        assert 0 < length <= row_len, f"a sequence of {length} tokens, but a row has {row_len}"
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            rows[row].append(index)
        else:
            room, row = row_len, len(rows)
            rows.append([index])
        left = room - length
        by_room[left].append(row)
        rooms |= 1 << left
    return rows


def batch_of(
    sequences: Sequence[Sequence[int]],
    loss_masks: Sequence[Sequence[bool]],
    rows: Sequence[Sequence[int]],
    row_len: int,
) -> Batch:
    """Write the sequences that `rows` index into rows; padding is token 0, seen by nothing.

    A sequence's first token is foretold by nothing, so its mask does not count.
    """
    token_ids = np.zeros((len(rows), row_len), dtype=np.int64)
    cu_seqlens, positions, targets = [0], [], []
    for number, row in enumerate(rows):
        at = 0
        for index in row:
            ids = np.asarray(sequences[index], dtype=np.int64)
            token_ids[number, at : at + len(ids)] = ids
            foretold = np.flatnonzero(loss_masks[index][1:])
            positions.append(number * row_len + at + foretold)
            targets.append(ids[foretold + 1])
            at += len(ids)
            cu_seqlens.append(number * row_len + at)
        if at < row_len:
            cu_seqlens.append((number + 1) * row_len)
    return Batch(
        [index for row in rows for index in row],
        token_ids,
        np.array(cu_seqlens, dtype=np.int64),
        np.concatenate(positions),
        np.concatenate(targets),
    )
