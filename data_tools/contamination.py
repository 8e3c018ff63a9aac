"""Decontamination: the texts of an evaluation set come in, which documents hold a piece of one goes out.

As in GPT-3 (Brown et al. 2020, appendix C): a document is contaminated if any run of 13 words, without case and
punctuation, occurs in a text of the evaluation set. Ours: a character of a script without blanks counts as a word
(`ngrams.py`), the whole document is dropped instead of the passage around the run, and an evaluation text shorter than
the run counts where it occurs whole, if it has MIN_UNITS or more; shorter texts occur everywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_tools.ngrams import ngrams_of, units_of

MIN_UNITS = 8  # GPT-3's shortest run, too
TEXTS_AT_A_TIME = 1000


class HashSet(NamedTuple):
    """Unique uint64 in ascending order; `is_taken` bool [2**bits] tells which values of the top bits occur at all."""

    hashes: np.ndarray
    is_taken: np.ndarray


class EvaluationNgrams(NamedTuple):
    """What documents may not hold: sets of hashes by the number of units.

    Texts shorter than `num_units` and all their like are in the sets of their own lengths; `num_ignored` of the
    evaluation set's texts are too short to be recognised.
    """

    sets: dict[int, HashSet]
    num_units: int
    num_ignored: int


def ngrams_of_evaluation(texts: Sequence[str], num_units: int) -> EvaluationNgrams:
    """All runs of `num_units` units of the texts, and the texts that are shorter."""
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    num_ignored = 0
    for first in range(0, len(texts), TEXTS_AT_A_TIME):
        units = units_of(texts[first : first + TEXTS_AT_A_TIME], num_units - 1)
        lengths = units.stop - units.start
        num_ignored += int((lengths < min(MIN_UNITS, num_units)).sum())
        for length, hashes in ngrams_of(units, num_units):
            if length == num_units:
                counts = np.maximum(lengths - num_units + 1, 0)
                found[length].append(hashes[np.repeat(units.start, counts) + _counted_from_0(counts)])
            elif length >= MIN_UNITS:
                found[length].append(hashes[units.start[lengths == length]])
    sets = {length: np.unique(np.concatenate(hashes)) for length, hashes in found.items()}
    return EvaluationNgrams(
        {length: _hash_set(hashes) for length, hashes in sets.items() if len(hashes)}, num_units, num_ignored
    )


def are_contaminated(texts: Sequence[str], evaluation: EvaluationNgrams) -> np.ndarray:
    """bool [texts]: whether a run of the evaluation set occurs in the text."""
    units = units_of(texts, evaluation.num_units - 1)  # padded, and no run of the evaluation set holds a pad
    is_contaminated = np.zeros(len(texts), dtype=bool)
    for length, hashes in ngrams_of(units, evaluation.num_units):
        if length in evaluation.sets:
            places = _places_in(hashes, evaluation.sets[length])
            is_contaminated[np.searchsorted(units.start, places, side="right") - 1] = True
    return is_contaminated


def _counted_from_0(counts: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]"""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _hash_set(hashes: np.ndarray) -> HashSet:
    bits = min(max(len(hashes).bit_length() + 3, 10), 24)  # one entry in eight or fewer is taken; 16 MB at most
    is_taken = np.zeros(2**bits, dtype=bool)
    is_taken[hashes >> np.uint64(64 - bits)] = True
    return HashSet(hashes, is_taken)


def _places_in(hashes: np.ndarray, known: HashSet) -> np.ndarray:
    """int64 [hits]: the places of `hashes` whose value is in the set. The top bits spare nearly all searches."""
    bits = len(known.is_taken).bit_length() - 1
    places = np.flatnonzero(known.is_taken[hashes >> np.uint64(64 - bits)])
    candidates = hashes[places]
    neighbours = known.hashes.take(np.searchsorted(known.hashes, candidates), mode="clip")
    return places[neighbours == candidates]
