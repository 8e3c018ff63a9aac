"""Packing: nothing lost, nothing doubled, no row too long, and rows about as few as can be."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_tools.pack import best_fit_decreasing, pack


def best_fit_by_search(lengths: list[int], capacity: int) -> int:
    """Number of rows of best fit decreasing, searched through all rows."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda row: rooms[row])] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


def fewest_rows(lengths: list[int], capacity: int) -> int:
    """The best number of rows there is, by trying every assignment."""
    for num_rows in range(1, len(lengths) + 1):
        for rows in itertools.product(range(num_rows), repeat=len(lengths)):
            if max(np.bincount(rows, weights=lengths)) <= capacity:
                return num_rows
    return 0


@given(st.lists(st.integers(1, 100)), st.integers(8, 40))
def test_every_token_lies_in_exactly_one_row(lengths: list[int], max_length: int) -> None:
    packing = pack(np.array(lengths, np.int64), max_length)
    tokens = [
        (int(sequence), position)
        for sequence, start, stop in zip(packing.sequence, packing.start, packing.stop, strict=True)
        for position in range(start, stop)
    ]
    assert sorted(tokens) == [(s, p) for s, length in enumerate(lengths) for p in range(length)]
    assert packing.row_start[0] == 0
    assert packing.row_start[-1] == len(packing.sequence)
    for first, last in itertools.pairwise(packing.row_start):
        assert 0 < (packing.stop - packing.start)[first:last].sum() <= max_length


@given(st.lists(st.integers(1, 200), min_size=1), st.integers(8, 40))
def test_a_long_sequence_is_cut_into_full_rows_and_one_rest(lengths: list[int], max_length: int) -> None:
    packing = pack(np.array(lengths, np.int64), max_length)
    for sequence, length in enumerate(lengths):
        sizes = (packing.stop - packing.start)[packing.sequence == sequence]
        assert (sizes == max_length).sum() == length // max_length
        assert len(sizes) == math.ceil(length / max_length)


@given(st.lists(st.integers(1, 30), max_size=60), st.just(30))
def test_as_many_rows_as_a_search_through_all_rows_needs(lengths: list[int], capacity: int) -> None:
    rows = best_fit_decreasing(np.array(lengths, np.int64), capacity)
    assert len(set(rows.tolist())) == best_fit_by_search(lengths, capacity)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_at_most_one_row_above_the_best_for_a_few(lengths: list[int]) -> None:
    rows = best_fit_decreasing(np.array(lengths, np.int64), 12)
    assert len(set(rows.tolist())) <= fewest_rows(lengths, 12) + 1


def test_best_fit_leaves_the_least_room() -> None:
    assert best_fit_decreasing(np.array([6, 7, 3, 4]), 10).tolist() == [1, 0, 0, 1]


def test_no_sequence_makes_no_row() -> None:
    assert pack(np.array([], np.int64), 8).num_rows == 0
