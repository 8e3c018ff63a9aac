"""Lengths of sequences -> rows of at most `max_length` tokens: every token exactly once. Pure, no token data.

A sequence longer than a row is cut into full rows; what remains of it is packed together with the others by best fit
decreasing: the longest first, each into the open row that it leaves the least room in.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Pieces sorted by row: row r holds the pieces `row_start[r]` up to `row_start[r + 1]`, in this order.

    Piece p is the part `start[p]:stop[p]` of the sequence `sequence[p]`. [pieces] int64; `row_start` is [rows + 1].
    """

    sequence: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    row_start: np.ndarray

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.row_start) - 1


def pack(lengths: np.ndarray, max_length: int) -> Packing:
    """Rows for sequences of `lengths` [sequences] int64, each at least 1. Equal input, equal rows."""
    num_full = lengths // max_length
    remainder = lengths % max_length
    full = np.repeat(np.arange(len(lengths)), num_full)
    full_start = (np.arange(len(full)) - np.repeat(np.cumsum(num_full) - num_full, num_full)) * max_length

    rest = np.flatnonzero(remainder)
    row_of_rest = best_fit_decreasing(remainder[rest], max_length)
    by_row = np.argsort(row_of_rest, kind="stable")
    rest = rest[by_row]

    pieces_per_row = np.concatenate([np.ones(len(full), np.int64), np.bincount(row_of_rest)])
    return Packing(
        sequence=np.concatenate([full, rest]),
        start=np.concatenate([full_start, num_full[rest] * max_length]),
        stop=np.concatenate([full_start + max_length, lengths[rest]]),
        row_start=np.concatenate([[0], np.cumsum(pieces_per_row)]),
    )


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Row of each item, [items] int64, for lengths [items] from 1 to `capacity`. O(items * log(capacity))."""
    row_of_item = np.empty(len(lengths), np.int64)
    rows_with_room: defaultdict[int, list[int]] = defaultdict(list)
    rooms: list[int] = []  # those with a row, ascending
    num_rows = 0
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, room = num_rows, capacity
            num_rows += 1
        else:
            room = rooms[place]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rooms[place]
        row_of_item[item] = row
        if room > length:
            if not rows_with_room[room - length]:
                insort(rooms, room - length)
            rows_with_room[room - length].append(row)
    return row_of_item
