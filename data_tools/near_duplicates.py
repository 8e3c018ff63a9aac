"""Documents that say the same: texts become sketches in the workers, and one pass over all sketches says which to drop.

The similarity of two texts is the Jaccard similarity of their sets of shingles: the runs of SHINGLE_UNITS units of
`ngrams.py` (words; characters of scripts without blanks), the last ones filled with pads. Five words is what
RefinedWeb (Penedo et al. 2023) took; five Han characters are about three words, so one changed character in a poem of
forty still leaves a similarity of 0.78. MinHash (Broder 1997) estimates it: of SKETCH_VALUES minima under as many
permutations, the share in which two texts agree, with a standard deviation of 0.035 at 0.8. 16 bits of each minimum
suffice (b-bit MinHash, Li and Koenig 2010).

Memory of the global pass: 256 bytes a document of sketches, and up to 280 bytes a document beside them.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from itertools import chain

import numpy as np
from rensa import RMinHash

from data_tools.ngrams import mixed, ngrams_of, units_of

SHINGLE_UNITS = 5
SKETCH_VALUES = 128
SEED = 42
MIN_RECALL = 0.99  # of the bands alone, for a pair that is exactly as similar as asked for
MAX_COMPARED = 64  # kept documents of one band group that a document is compared with, so that time stays linear
NO_SHINGLE = 2**16 - 1
LARGE_BATCH = 2**17  # shingles; several times what makes rensa start threads
# Sketches of one kind can be compared.
SKETCH_KIND = f"rensa {RMinHash.ALGORITHM_VERSION}, {SKETCH_VALUES} values, {SHINGLE_UNITS} units"


def sketches_of(texts: Sequence[str]) -> np.ndarray:
    """uint16 [texts, SKETCH_VALUES]: the MinHash sketch of each text; all NO_SHINGLE for one without any unit."""
    _keep_rensa_to_one_thread()
    units = units_of(texts, SHINGLE_UNITS - 1)
    *_, (_, hashes) = ngrams_of(units, SHINGLE_UNITS)
    counts = units.stop - units.start
    offsets = np.concatenate(([0], np.cumsum(counts)))
    places = np.arange(offsets[-1]) + np.repeat(units.start - offsets[:-1], counts)
    minima = np.fromiter(
        chain.from_iterable(_min_hashes(mixed(hashes[places]), offsets)), np.uint32, len(texts) * SKETCH_VALUES
    )
    return minima.astype(np.uint16).reshape(len(texts), SKETCH_VALUES)


def _min_hashes(hashes: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    """[texts] lists of SKETCH_VALUES uint32; the shingles of text t are `hashes[offsets[t] : offsets[t + 1]]`."""
    return RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, offsets.astype(np.uint64), SKETCH_VALUES, SEED
    ).to_rows()


@functools.cache
def _keep_rensa_to_one_thread() -> None:
    """Its threads do not survive a fork (a forked worker would wait for them forever), and workers are many anyway.

    rensa counts its threads once, by the environment, at its first batch that is large enough for several.
    """
    before = os.environ.get("RAYON_NUM_THREADS")
    os.environ["RAYON_NUM_THREADS"] = "1"
    try:
        _min_hashes(np.arange(LARGE_BATCH, dtype=np.uint64), np.arange(0, LARGE_BATCH + 1, LARGE_BATCH // 16))
    finally:
        del os.environ["RAYON_NUM_THREADS"]
        if before is not None:
            os.environ["RAYON_NUM_THREADS"] = before


def near_duplicates(sketches: np.ndarray, order_keys: np.ndarray, similarity: float) -> np.ndarray:
    """bool [documents]: True for every document that resembles one that is kept.

    Documents are taken in ascending order of `order_keys` (uint64; equal keys mean equal texts): a document is dropped
    if it shares a band of its sketch with a kept one (the first MAX_COMPARED of each band) and the estimate is
    `similarity` or more. So each dropped document has a kept double, and the order of the rows has no say.
    """
    order = np.argsort(order_keys, kind="stable")
    groups, capacities = _band_groups(sketches, similarity)
    first_slot = np.cumsum(capacities, dtype=np.int64) - capacities
    members = np.empty(capacities.sum(dtype=np.int64), dtype=np.int32)  # the kept documents of each group
    num_members = np.zeros_like(capacities)
    needed = math.ceil(similarity * SKETCH_VALUES)
    is_dropped = np.zeros(len(sketches), dtype=bool)
    has_company = np.any(groups >= 0, axis=1)
    for document in order[has_company[order]].tolist():
        own_groups = groups[document]
        own_groups = own_groups[own_groups >= 0]
        slots = first_slot[own_groups]
        fills = num_members[own_groups]
        for slot, fill in zip(slots.tolist(), fills.tolist(), strict=True):
            if fill and _resembles(sketches[members[slot : slot + fill]], sketches[document], needed):
                is_dropped[document] = True
                break
        else:
            has_room = fills < capacities[own_groups]
            members[(slots + fills)[has_room]] = document
            num_members[own_groups[has_room]] += 1
    return is_dropped


def _resembles(others: np.ndarray, sketch: np.ndarray, needed: int) -> bool:
    return bool(((others == sketch).sum(axis=1) >= needed).any())


def bands_of(similarity: float) -> tuple[int, int]:
    """(bands, values in a band): the longest bands in which a pair of this similarity agrees somewhere nearly surely.

    It agrees in one of b bands of r values with probability 1 - (1 - similarity**r)**b (Leskovec et al., Mining of
    Massive Datasets, 3.4.2).
    """
    for width in range(SKETCH_VALUES, 1, -1):
        num_bands = SKETCH_VALUES // width
        if 1 - (1 - similarity**width) ** num_bands >= MIN_RECALL:
            return num_bands, width
    return SKETCH_VALUES, 1


def _band_groups(sketches: np.ndarray, similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """Which documents agree in a whole band.

    Returns int32 [documents, bands]: the number of the group, counted through all bands, -1 where no other document
    agrees (or there is no unit to agree in); and uint8 [groups]: documents in a group, MAX_COMPARED at most.
    """
    num_bands, width = bands_of(similarity)
    groups = np.full((len(sketches), num_bands), -1, dtype=np.int32)
    with_units = np.flatnonzero((sketches != NO_SHINGLE).any(axis=1))
    sizes: list[np.ndarray] = [np.zeros(0, dtype=np.uint8)]
    num_groups = 0
    for band in range(num_bands):
        keys = np.zeros(len(with_units), dtype=np.uint64)
        for column in range(band * width, (band + 1) * width):
            keys = mixed(keys + sketches[with_units, column])
        _, key_of, counts = np.unique(keys, return_inverse=True, return_counts=True)
        is_shared = counts > 1
        number_of = np.where(is_shared, np.cumsum(is_shared) - 1 + num_groups, -1)
        groups[with_units, band] = number_of[key_of]
        sizes.append(np.minimum(counts[is_shared], MAX_COMPARED).astype(np.uint8))
        num_groups += len(sizes[-1])
    return groups, np.concatenate(sizes)
