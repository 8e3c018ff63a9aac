"""Buckets: every document in one, each category balanced in each, for any number of buckets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.buckets import assign_buckets, balanced_bins, groups, shards

weights_strategy = st.lists(st.integers(0, 50), min_size=1, max_size=80)


def loads(bins: np.ndarray, weights: np.ndarray, num_bins: int) -> np.ndarray:
    return np.bincount(bins, weights=weights, minlength=num_bins)


@given(weights_strategy, st.integers(1, 40))
def test_bins_differ_by_no_more_than_one_document(weights: list[int], num_bins: int) -> None:
    bins, bin_loads = balanced_bins(np.array(weights), num_bins)
    assert bin_loads.tolist() == loads(bins, np.array(weights), num_bins).tolist()
    assert bin_loads.max() - bin_loads.min() <= max(weights)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(1, 3))
def test_heaviest_bin_is_within_four_thirds_of_the_best(weights: list[int], num_bins: int) -> None:
    heaviest = balanced_bins(np.array(weights), num_bins)[1].max()
    choices = itertools.product(range(num_bins), repeat=len(weights))
    best = min(loads(np.array(choice), np.array(weights), num_bins).max() for choice in choices)
    assert 3 * heaviest <= 4 * best


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=80), st.integers(1, 40))
def test_each_category_is_balanced_and_so_is_the_whole(items: list[tuple[int, int]], num_buckets: int) -> None:
    category, weights = np.array(items).T
    bucket = assign_buckets(category, weights, np.arange(len(items)).astype(np.uint64), num_buckets)
    assert bucket.min() >= 0
    for name in set(category.tolist()):
        mine = category == name
        bucket_loads = loads(bucket[mine], weights[mine], num_buckets)
        assert bucket_loads.max() - bucket_loads.min() <= weights[mine].max()
    total = loads(bucket, weights, num_buckets)
    assert total.max() - total.min() <= weights.max()  # categories even each other out, they do not add up


def test_single_documents_of_many_categories_spread_over_the_buckets() -> None:
    keys = np.arange(5).astype(np.uint64)
    assert sorted(assign_buckets(np.arange(5), np.full(5, 10), keys, 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_bins", [1, 7, 30])
def test_many_documents_of_all_sizes_are_balanced_within_two_percent(num_bins: int) -> None:
    weights = np.ceil(np.random.default_rng(0).pareto(1.1, 20_000) * 100).clip(1, 50_000).astype(np.int64)
    bins, bin_loads = balanced_bins(weights, num_bins)
    assert bin_loads.max() - bin_loads.min() <= 0.02 * bin_loads.mean()
    assert bin_loads.tolist() == loads(bins, weights, num_bins).tolist()


def test_short_documents_fill_up_what_long_ones_have_left() -> None:
    weights = np.array([1] * 200 + [1000, 100] + [1] * 200)
    bins, bin_loads = balanced_bins(weights, 3)
    assert sorted(bin_loads.tolist()) == [250, 250, 1000]
    assert bin_loads.tolist() == loads(bins, weights, 3).tolist()


def test_short_documents_of_a_bin_are_neighbours() -> None:
    """So a bucket is read from few places of the disk."""
    bins, _ = balanced_bins(np.random.default_rng(0).integers(1, 9, 5000), 10)
    assert (np.diff(bins) >= 0).all()


def test_the_order_of_the_documents_does_not_matter_only_their_keys() -> None:
    draw = np.random.default_rng(0)
    category, weights, keys = draw.integers(0, 3, 500), draw.integers(1, 90, 500), draw.permutation(500).astype("u8")
    order = draw.permutation(500)
    one = assign_buckets(category, weights, keys, 7)
    other = assign_buckets(category[order], weights[order], keys[order], 7)
    assert one[order].tolist() == other.tolist()


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_shards_are_all_documents_in_order_and_of_like_size(tokens: list[int], most: int) -> None:
    found = shards(np.array(tokens, np.int64), most)
    assert [token for shard in found for token in tokens[shard]] == tokens
    assert all(sum(tokens[shard]) <= most + max(tokens, default=0) for shard in found)


def test_groups_lists_every_place_of_every_label() -> None:
    assert [group.tolist() for group in groups(np.array([2, 0, 2]), 4)] == [[1], [], [0, 2], []]
