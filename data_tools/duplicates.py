"""Which documents repeat others: all documents and the flags come in, which are kept and why not goes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_tools.chunks import read_columns
from data_tools.documents import Documents
from data_tools.near_duplicates import near_duplicates

if TYPE_CHECKING:
    from data_tools.cleaning import CleaningConfig


@dataclass(frozen=True)
class Kept:
    """`is_kept` [documents] bool; `dropped`: reason -> [documents] bool, no document under two reasons."""

    is_kept: np.ndarray
    dropped: dict[str, np.ndarray]


def find_duplicates(documents: Documents, config: CleaningConfig) -> Kept:
    """Of equal or similar documents the one with the smallest hash stays; of equal ones the one of the first category.

    So it does not matter in which files and in which order they came.
    """
    dropped: dict[str, np.ndarray] = {}
    order = np.lexsort((documents.category, documents.hash))
    is_kept = np.ones(len(documents), bool)
    if config.drop_exact_duplicates:
        ordered = documents.hash[order]
        is_repeat = np.zeros(len(documents), bool)
        is_repeat[order[1:]] = ordered[1:] == ordered[:-1]
        dropped["exact_duplicate"] = is_repeat
        is_kept &= ~is_repeat
    if config.near_duplicate_similarity is not None:
        left = order[is_kept[order]]
        sketches = np.concatenate([read_columns(chunk.path, ("sketch",))["sketch"] for chunk in documents.chunks])
        ranks = np.arange(len(left), dtype=np.uint64)
        is_near = np.zeros(len(documents), bool)
        is_near[left] = near_duplicates(sketches[left], ranks, config.near_duplicate_similarity)
        dropped["near_duplicate"] = is_near
        is_kept &= ~is_near
    return Kept(is_kept, dropped)
