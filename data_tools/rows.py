"""Rows of one bucket: documents and the bucket's members come in, batches of finished rows go out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.encode import labels_of
from data_tools.pack import Packing, pack
from data_tools.spool import Documents

TOKENS_PER_BATCH = 2**20


@dataclass(frozen=True)
class RowBatch:
    """Some rows, laid end to end.

    `input_ids` [tokens] uint16 or uint32 and `labels` [tokens] int32; `document_lengths` and `document_categories`
    [pieces] int32; `row_lengths` (tokens) and `row_pieces` [rows] int64 say where rows end.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    document_lengths: np.ndarray
    document_categories: np.ndarray
    row_lengths: np.ndarray
    row_pieces: np.ndarray


def row_batches(documents: Documents, members: np.ndarray, max_length: int, seed: list[int]) -> Iterator[RowBatch]:
    """The rows of a bucket with the documents `members` [int64], in an order drawn from `seed` (numbers from 0 up)."""
    packing = pack(documents.length[members], max_length)
    order = np.random.default_rng(seed).permutation(packing.num_rows)
    rows_per_batch = max(1, TOKENS_PER_BATCH // max_length)
    for first in range(0, packing.num_rows, rows_per_batch):
        yield _gather(documents, members, packing, order[first : first + rows_per_batch])


def _gather(documents: Documents, members: np.ndarray, packing: Packing, rows: np.ndarray) -> RowBatch:
    row_pieces = packing.row_start[rows + 1] - packing.row_start[rows]
    pieces = np.concatenate([np.arange(packing.row_start[row], packing.row_start[row + 1]) for row in rows])
    document = members[packing.sequence[pieces]]
    start, stop = packing.start[pieces], packing.stop[pieces]
    borders = zip(
        (documents.offset[document] + start).tolist(), (documents.offset[document] + stop).tolist(), strict=True
    )
    ids_of_pieces = [documents.tokens[begin:end] for begin, end in borders]
    num_without_loss = (documents.loss_start[document] - start).tolist()
    labels = [labels_of(ids, masked) for ids, masked in zip(ids_of_pieces, num_without_loss, strict=True)]
    piece_ends = np.cumsum(stop - start)
    row_ends = piece_ends[np.cumsum(row_pieces) - 1]
    return RowBatch(
        input_ids=np.concatenate(ids_of_pieces),
        labels=np.concatenate(labels),
        document_lengths=(stop - start).astype(np.int32),
        document_categories=documents.category[document].astype(np.int32),
        row_lengths=np.diff(row_ends, prepend=0),
        row_pieces=row_pieces,
    )
