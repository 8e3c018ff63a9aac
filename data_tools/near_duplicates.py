"""Documents that say the same: texts become sketches in the workers, and one pass over all sketches says which to drop.

The similarity of two texts is the Jaccard similarity of their sets of shingles: the runs of SHINGLE_UNITS units of
`ngrams.py` (words; characters of scripts without blanks), the last ones filled with pads. Five words is what
RefinedWeb (Penedo et al. 2023) took; five Han characters are about three words, so one changed character in a poem of
forty still leaves a similarity of 0.78. MinHash (Broder 1997) estimates it: of SKETCH_VALUES minima under as many
permutations, the share in which two texts agree, with a standard deviation of 0.035 at 0.8. 16 bits of each minimum
suffice (b-bit MinHash, Li and Koenig 2010).

Memory of the global pass: 256 bytes a document of sketches, and up to 250 bytes a document beside them.
"""

from __future__ import annotations

import math
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
SKETCH_KIND = (
    f"rensa {RMinHash.ALGORITHM_VERSION}, {SKETCH_VALUES} values, {SHINGLE_UNITS} units"  # equal if comparable
)


def sketches_of(texts: Sequence[str]) -> np.ndarray:
    """uint16 [texts, SKETCH_VALUES]: the MinHash sketch of each text; all NO_SHINGLE for one without any unit."""
    units = units_of(texts, SHINGLE_UNITS - 1)
    *_, (_, hashes) = ngrams_of(units, SHINGLE_UNITS)
    counts = units.stop - units.start
    offsets = np.concatenate(([0], np.cumsum(counts)))
    places = np.arange(offsets[-1]) + np.repeat(units.start - offsets[:-1], counts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        mixed(hashes[places]), offsets.astype(np.uint64), SKETCH_VALUES, SEED
    )
    minima = np.fromiter(chain.from_iterable(matrix.to_rows()), np.uint32, len(texts) * SKETCH_VALUES)
    return minima.astype(np.uint16).reshape(len(texts), SKETCH_VALUES)


def exact_duplicates(content_hashes: np.ndarray) -> np.ndarray:
    """bool [documents]: True for every document behind the first with the same hash."""
    is_repeated = np.ones(len(content_hashes), dtype=bool)
    is_repeated[np.unique(content_hashes, return_index=True)[1]] = False
    return is_repeated


def near_duplicates(sketches: np.ndarray, order_keys: np.ndarray, similarity: float) -> np.ndarray:
    """bool [documents]: True for every document that resembles one that is kept.

    Documents are taken in ascending order of `order_keys` (uint64; equal keys mean equal texts): a document is dropped
    if it shares a band of its sketch with a kept one and the estimate is `similarity` or more. So each dropped document
    has a kept double, no two kept ones are doubles, and neither the order of the rows nor chance has a say.
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
