"""Documents -> buckets: categories, loss-bearing tokens and keys come in, the bucket of each document goes out. Pure.

Each category is divided into as many bins as there are buckets, balanced in loss-bearing tokens; a bucket is one bin of
every category. So every bucket is a small copy of the whole mixture.

A document's key is a hash of its content. The few long documents of a category are dealt out first, the longest to the
lightest bin; the many short ones fill the bins up as consecutive runs of keys. A bin is then mostly one range of keys,
which lies together on the disk, and no bin is off by more than one short document.
"""

from __future__ import annotations

import heapq

import numpy as np

LEVEL_SHARE = 0.005  # above an equal share: dealing has gone well enough
MOST_EXCHANGES = 1000
LONG_SHARE = 0.005  # of a bin's loss-bearing tokens: a longer document is dealt out by itself


def assign_buckets(category: np.ndarray, loss_tokens: np.ndarray, key: np.ndarray, num_buckets: int) -> np.ndarray:
    """Bucket of each document, [documents] int64, from [documents] arrays: category, loss-bearing tokens, uint64 key.

    The heaviest bin of a category joins the bucket that is lightest so far: what one category cannot balance (fewer
    documents than buckets, one very long document) the next ones even out. Level bins stay in their order, so that a
    bucket has the same range of keys in every category.
    """
    bucket = np.empty(len(category), np.int64)
    bucket_loads = np.zeros(num_buckets, np.int64)
    for members in groups(category, int(category.max(initial=-1)) + 1):
        members = members[np.argsort(key[members], kind="stable")]
        bin_of_member, bin_loads = balanced_bins(loss_tokens[members], num_buckets)
        bucket_of_bin = np.arange(num_buckets)
        if bin_loads.max() - bin_loads.min() > LEVEL_SHARE * bin_loads.mean():
            bucket_of_bin[np.argsort(-bin_loads, kind="stable")] = np.argsort(bucket_loads, kind="stable")
        bucket[members] = bucket_of_bin[bin_of_member]
        bucket_loads[bucket_of_bin] += bin_loads
    return bucket


def balanced_bins(weights: np.ndarray, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Bin of each weight, [weights] int64, and what each bin then holds, [bins] int64.

    Weights above LONG_SHARE of a bin go one by one, the heaviest first, into the lightest bin (at most 4/3 of the best,
    Graham 1969); the others follow in the order given and fill each bin up to an equal share.
    """
    bins = np.empty(len(weights), np.int64)
    is_long = weights > weights.sum() * LONG_SHARE / num_bins
    heap = [(0, index) for index in range(num_bins)]
    long = np.flatnonzero(is_long)
    for item in long[np.argsort(-weights[long], kind="stable")].tolist():
        load, index = heap[0]
        bins[item] = index
        heapq.heapreplace(heap, (load + int(weights[item]), index))
    loads = np.bincount(bins[long], weights[long], minlength=num_bins).astype(np.int64)
    if weights.sum() and loads.max(initial=0) > (1 + LEVEL_SHARE) * weights.sum() / num_bins:
        bins[long] = levelled(weights[long], bins[long], loads)
    short = np.flatnonzero(~is_long)
    borders = np.cumsum(_room(loads, int(weights[short].sum())))
    middle = np.cumsum(weights[short]) - weights[short] / 2
    bins[short] = np.minimum(np.searchsorted(borders, middle, side="right"), num_bins - 1)
    np.add.at(loads, bins[short], weights[short])
    return bins, loads


def levelled(weights: np.ndarray, bins: np.ndarray, loads: np.ndarray) -> np.ndarray:
    """Better bins [weights]: again and again one weight of the heaviest bin that can be helped is moved or exchanged.

    Dealing leaves some bins of few documents up to a third above the others. `loads` [bins] is kept up to date.
    """
    bins = bins.copy()
    for _ in range(MOST_EXCHANGES):
        light = int(loads.argmin())
        inside = np.append(np.flatnonzero(bins == light), -1)  # -1: nothing comes back
        back = np.append(weights[inside[:-1]], 0)
        for heavy in np.argsort(-loads, kind="stable").tolist():
            gap = int(loads[heavy] - loads[light])
            given = np.flatnonzero(bins == heavy)
            gain = weights[given][:, None] - back[None, :]
            best = int(np.abs(gain - gap / 2).argmin()) if gain.size else 0
            moved = int(gain.flat[best]) if gain.size else 0
            if 0 < moved < gap:
                out, into = given[best // len(back)], inside[best % len(back)]
                bins[out] = light
                if into >= 0:
                    bins[into] = heavy
                loads[heavy] -= moved
                loads[light] += moved
                break
        else:
            break
    return bins


def _room(loads: np.ndarray, amount: int) -> np.ndarray:
    """How much of `amount` each bin takes so that all stand as level as they can: water poured into a vessel."""
    ascending = np.sort(loads)
    below = np.arange(1, len(loads) + 1)
    levels = (amount + np.cumsum(ascending)) / below  # if the lowest 1, 2, ... bins take it all
    wet = int(np.flatnonzero(levels >= ascending)[-1])
    return np.maximum(levels[wet] - loads, 0)


def groups(labels: np.ndarray, num_groups: int) -> list[np.ndarray]:
    """For each label from 0 to num_groups - 1 the places [int64, ascending] where `labels` has it."""
    borders = np.cumsum(np.bincount(labels, minlength=num_groups))[:-1]
    return np.split(np.argsort(labels, kind="stable"), borders)


def shards(tokens: np.ndarray, most_tokens: int) -> list[slice]:
    """Consecutive runs of documents [tokens each], each of at most about `most_tokens`: what is in memory at a time."""
    num_shards = max(1, -(-int(tokens.sum()) // most_tokens))
    borders = np.searchsorted(np.cumsum(tokens), np.arange(1, num_shards) * (tokens.sum() / num_shards))
    runs = zip([0, *borders.tolist()], [*borders.tolist(), len(tokens)], strict=True)
    return [slice(first, last) for first, last in runs if first < last]  # none where one document is more than a run
