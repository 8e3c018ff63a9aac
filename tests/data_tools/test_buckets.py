"""Buckets: every document in one, each category balanced in each, for any number of buckets."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_tools.buckets import assign_buckets, balanced_bins, groups

weights_strategy = st.lists(st.integers(1, 50), min_size=1, max_size=80)


def loads(bins: np.ndarray, weights: np.ndarray, num_bins: int) -> np.ndarray:
    return np.bincount(bins, weights=weights, minlength=num_bins)


@given(weights_strategy, st.integers(1, 40))
def test_bins_differ_by_no_more_than_one_document(weights: list[int], num_bins: int) -> None:
    bin_loads = loads(balanced_bins(np.array(weights), num_bins), np.array(weights), num_bins)
    assert bin_loads.max() - bin_loads.min() <= max(weights)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(1, 3))
def test_heaviest_bin_is_within_four_thirds_of_the_best(weights: list[int], num_bins: int) -> None:
    heaviest = loads(balanced_bins(np.array(weights), num_bins), np.array(weights), num_bins).max()
    choices = itertools.product(range(num_bins), repeat=len(weights))
    best = min(loads(np.array(choice), np.array(weights), num_bins).max() for choice in choices)
    assert 3 * heaviest <= 4 * best


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=80), st.integers(1, 40))
def test_each_category_is_balanced_and_so_is_the_whole(items: list[tuple[int, int]], num_buckets: int) -> None:
    category, weights = np.array(items).T
    bucket = assign_buckets(category, weights, num_buckets)
    assert bucket.min() >= 0
    for name in set(category.tolist()):
        mine = category == name
        bucket_loads = loads(bucket[mine], weights[mine], num_buckets)
        assert bucket_loads.max() - bucket_loads.min() <= weights[mine].max()
    total = loads(bucket, weights, num_buckets)
    assert total.max() - total.min() <= weights.max()  # categories even each other out, they do not add up


def test_single_documents_of_many_categories_spread_over_the_buckets() -> None:
    assert sorted(assign_buckets(np.arange(5), np.full(5, 10), 5).tolist()) == [0, 1, 2, 3, 4]


def test_groups_lists_every_place_of_every_label() -> None:
    assert [group.tolist() for group in groups(np.array([2, 0, 2]), 4)] == [[1], [], [0, 2], []]
