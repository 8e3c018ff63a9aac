"""Documents -> buckets: categories and loss-bearing tokens come in, the bucket of each document goes out. Pure.

Each category is divided into as many bins as there are buckets, balanced in loss-bearing tokens; a bucket is one bin of
every category. So every bucket is a small copy of the whole mixture.
"""

from __future__ import annotations

import heapq

import numpy as np


def assign_buckets(category: np.ndarray, loss_tokens: np.ndarray, num_buckets: int) -> np.ndarray:
    """Bucket of each document, [documents] int64, from category [documents] and loss-bearing tokens [documents].

    The heaviest bin of a category joins the bucket that is lightest so far: what one category cannot balance (fewer
    documents than buckets, one very long document) the next ones even out.
    """
    bucket = np.empty(len(category), np.int64)
    bucket_loads = np.zeros(num_buckets, np.int64)
    for members in groups(category, int(category.max(initial=-1)) + 1):
        bin_of_member = balanced_bins(loss_tokens[members], num_buckets)
        bin_loads = np.zeros(num_buckets, np.int64)
        np.add.at(bin_loads, bin_of_member, loss_tokens[members])
        bucket_of_bin = np.empty(num_buckets, np.int64)
        bucket_of_bin[np.argsort(-bin_loads, kind="stable")] = np.argsort(bucket_loads, kind="stable")
        bucket[members] = bucket_of_bin[bin_of_member]
        bucket_loads[bucket_of_bin] += bin_loads
    return bucket


def balanced_bins(weights: np.ndarray, num_bins: int) -> np.ndarray:
    """Bin of each weight, [weights] int64: the heaviest first, each into the lightest bin (4/3 of the best at most)."""
    bins = np.empty(len(weights), np.int64)
    heap = [(0, index) for index in range(num_bins)]
    for item in np.argsort(-weights, kind="stable").tolist():
        load, index = heap[0]
        bins[item] = index
        heapq.heapreplace(heap, (load + int(weights[item]), index))
    return bins


def groups(labels: np.ndarray, num_groups: int) -> list[np.ndarray]:
    """For each label from 0 to num_groups - 1 the places [int64, ascending] where `labels` has it."""
    borders = np.cumsum(np.bincount(labels, minlength=num_groups))[:-1]
    return np.split(np.argsort(labels, kind="stable"), borders)
