"""The rows of an evaluation set that are measured: spread over all of it, and the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.eval_rows import ChosenRows, spread_rows
from data_tools.bins import Bin, Bins, open_bins


def counted(rows_per_bin: list[int]) -> Bins:
    """Bins of which only the numbers of their rows are known."""
    nothing = np.zeros(0, np.int64)
    bins = [
        Bin(Path(str(index)), rows, num_tokens=0, num_loss_tokens=0, sha256="", category_indices=nothing)
        for index, rows in enumerate(rows_per_bin)
    ]
    return Bins(bins, 1, "", [], [])


@given(rows_per_bin=st.lists(st.integers(0, 30), min_size=1, max_size=6), max_rows=st.integers(1, 100))
def test_rows_are_spread_evenly(rows_per_bin: list[int], max_rows: int) -> None:
    total = sum(rows_per_bin)
    if total <= max_rows:
        bins = counted(rows_per_bin)
        assert spread_rows(bins, max_rows) is bins
        return
    spread = spread_rows(counted(rows_per_bin), max_rows)
    starts = np.cumsum([0, *rows_per_bin])
    places = []
    for one in spread.bins:
        assert isinstance(one, ChosenRows) and one.num_rows == len(one.chosen) > 0
        index = int(one.path.name)
        assert one.chosen.min() >= 0 and one.chosen.max() < rows_per_bin[index]
        places += (starts[index] + one.chosen).tolist()
    assert spread.num_rows == len(places) == max_rows
    assert places[0] == 0
    gaps = np.diff([*places, total])
    assert gaps.min() >= total // max_rows and gaps.max() <= -(-total // max_rows)


def test_chosen_rows_are_those_of_the_whole_set(tiny_bins_dir: Path) -> None:
    bins = open_bins([tiny_bins_dir])
    assert spread_rows(bins, None) is bins
    spread = spread_rows(bins, 5)
    everything = [one.row(index).input_ids.tolist() for one in bins.bins for index in range(one.num_rows)]
    chosen = [one.row(index).input_ids.tolist() for one in spread.bins for index in range(one.num_rows)]
    assert chosen == [everything[i * len(everything) // 5] for i in range(5)]
    assert len(spread.bins) == 2 and (spread.categories, spread.max_length) == (bins.categories, bins.max_length)


def test_bins_without_a_chosen_row_are_left_out() -> None:
    assert [str(one.path) for one in spread_rows(counted([9, 1, 9]), 2).bins] == ["0", "1"]


def test_beyond_the_chosen_rows_is_nothing() -> None:
    with pytest.raises(IndexError):
        spread_rows(counted([9]), 2).bins[0].row(2)
