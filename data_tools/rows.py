"""Rows of a shard: documents in memory come in, batches of finished rows go out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.encode import IGNORED_LABEL, Encoded, loss_mask, ragged_index
from data_tools.pack import Packing, pack

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


def row_batches(
    encoded: Encoded, category: np.ndarray, lengths: np.ndarray, max_length: int, seed: list[int]
) -> Iterator[RowBatch]:
    """The rows of some documents, in an order drawn from `seed` (numbers from 0 up).

    `category` and `lengths` are [documents] int64; of a document longer than its entry of `lengths` only so many tokens
    are used.
    """
    mask = loss_mask(encoded.lengths, encoded.spans, encoded.num_spans)
    labels = np.where(mask, encoded.tokens.astype(np.int32), np.int32(IGNORED_LABEL))
    first_token = np.cumsum(encoded.lengths) - encoded.lengths
    packing = pack(lengths, max_length)
    order = np.random.default_rng(seed).permutation(packing.num_rows)
    rows_per_batch = max(1, TOKENS_PER_BATCH // max_length)
    for first in range(0, packing.num_rows, rows_per_batch):
        yield _gather(encoded.tokens, labels, first_token, category, packing, order[first : first + rows_per_batch])


def _gather(
    tokens: np.ndarray,
    labels: np.ndarray,
    first_token: np.ndarray,
    category: np.ndarray,
    packing: Packing,
    rows: np.ndarray,
) -> RowBatch:
    row_pieces = packing.row_start[rows + 1] - packing.row_start[rows]
    pieces = ragged_index(packing.row_start[rows], row_pieces)
    document = packing.sequence[pieces]
    lengths = packing.stop[pieces] - packing.start[pieces]
    places = ragged_index(first_token[document] + packing.start[pieces], lengths)
    row_ends = np.cumsum(lengths)[np.cumsum(row_pieces) - 1]
    return RowBatch(
        input_ids=tokens[places],
        labels=labels[places],
        document_lengths=lengths.astype(np.int32),
        document_categories=category[document].astype(np.int32),
        row_lengths=np.diff(row_ends, prepend=0),
        row_pieces=row_pieces,
    )
