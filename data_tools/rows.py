"""Rows of a shard: documents in memory come in, batches of finished rows go out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.encode import gathered
from data_tools.pack import Packing, pack

TOKENS_PER_BATCH = 2**20


@dataclass(frozen=True)
class RowBatch:
    """Some rows, laid end to end.

    `input_ids` [tokens] uint16 or uint32 and `labels` [tokens] int32; `document_lengths`, `document_categories` and
    `document_files` [pieces] int32, `document_lines` [pieces] int64; `row_lengths` (tokens) and `row_pieces` [rows]
    int64 say where rows end.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    document_lengths: np.ndarray
    document_categories: np.ndarray
    document_files: np.ndarray
    document_lines: np.ndarray
    row_lengths: np.ndarray
    row_pieces: np.ndarray


@dataclass(frozen=True)
class Shard:
    """Documents in memory: `tokens` and `labels` [tokens], and where each begins, `first_token` [documents] int64.

    `labels` are None where every token bears loss: they are the tokens then.
    `category` and `lengths` are [documents] int64; no more than `lengths` tokens of a document are used.
    `file` [documents] int32 and `line_number` [documents] int64 tell where each was read.
    """

    tokens: np.ndarray
    labels: np.ndarray | None
    first_token: np.ndarray
    category: np.ndarray
    lengths: np.ndarray
    file: np.ndarray
    line_number: np.ndarray


def row_batches(shard: Shard, max_length: int, seed: list[int]) -> Iterator[RowBatch]:
    """The rows of the documents, in an order drawn from `seed` (numbers from 0 up)."""
    packing = pack(shard.lengths, max_length)
    order = np.random.default_rng(seed).permutation(packing.num_rows)
    rows_per_batch = max(1, TOKENS_PER_BATCH // max_length)
    for first in range(0, packing.num_rows, rows_per_batch):
        yield _gather(shard, packing, order[first : first + rows_per_batch])


def _gather(shard: Shard, packing: Packing, rows: np.ndarray) -> RowBatch:
    row_pieces = packing.row_start[rows + 1] - packing.row_start[rows]
    pieces = gathered(np.arange(len(packing.sequence)), packing.row_start[rows], row_pieces)
    document = packing.sequence[pieces]
    lengths = packing.stop[pieces] - packing.start[pieces]
    starts = shard.first_token[document] + packing.start[pieces]
    row_ends = np.cumsum(lengths)[np.cumsum(row_pieces) - 1]
    input_ids = gathered(shard.tokens, starts, lengths)
    return RowBatch(
        input_ids=input_ids,
        labels=input_ids.astype(np.int32) if shard.labels is None else gathered(shard.labels, starts, lengths),
        document_lengths=lengths.astype(np.int32),
        document_categories=shard.category[document].astype(np.int32),
        document_files=shard.file[document],
        document_lines=shard.line_number[document],
        row_lengths=np.diff(row_ends, prepend=0),
        row_pieces=row_pieces,
    )
