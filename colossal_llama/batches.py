"""Bins -> the rows of each step on this rank: one endless, deterministic global order, read from any position onward.

Row number i of a run is a pure function of (seed, bins, i); how many ranks, micro-batches and accumulation steps share
the work only decides who reads it. So a run goes on from `num_rows_seen` with any other number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from colossal_llama.batch import IGNORED, Batch, document_borders
from data_tools.bins import Bins


class RowOrder:
    """Which row of which bin comes as number i: bucket after bucket, each shuffled anew for every epoch."""

    def __init__(self, rows_per_bin: list[int], seed: int) -> None:
        self.num_rows = sum(rows_per_bin)
        self._starts = np.concatenate([[0], np.cumsum(rows_per_bin)])
        self._rows_per_bin = rows_per_bin
        self._seed = seed
        self._cached: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    def locate(self, number: int) -> tuple[int, int]:
        """Row `number` of the run (0 is the first, epochs follow on) as (bin, row inside the bin)."""
        epoch, position = divmod(number, self.num_rows)
        bin_index = int(np.searchsorted(self._starts, position, side="right")) - 1
        return bin_index, int(self._permutation(epoch, bin_index)[position - self._starts[bin_index]])

    def row_id(self, bin_index: int, row_index: int) -> int:
        """Place of a row in the dataset, all bins end to end, from 1 on."""
        return int(self._starts[bin_index]) + row_index + 1

    def _permutation(self, epoch: int, bin_index: int) -> NDArray[np.int64]:
        cached = self._cached  # once: another thread may be reading ahead of this one
        if cached is None or cached[0] != (epoch, bin_index):
            generator = np.random.default_rng([self._seed, epoch, bin_index])
            cached = (epoch, bin_index), generator.permutation(self._rows_per_bin[bin_index])
            self._cached = cached
        return cached[1]


@dataclass(frozen=True)
class Shape:
    """How one step's rows are shared out: micro-batch by micro-batch, data-parallel rank by rank."""

    micro_batch_size: int
    accumulation_steps: int
    dp_size: int
    dp_rank: int
    global_batch_size: int | None = None
    """Rows of one optimizer step over all ranks if these are fewer than there is room for."""

    @property
    def room_per_step(self) -> int:
        """Rows that the micro-batches of all ranks hold together."""
        return self.micro_batch_size * self.accumulation_steps * self.dp_size

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step over all ranks; the rest of the room is blank."""
        return self.global_batch_size or self.room_per_step

    def row_numbers(self, first_row: int) -> list[list[int]]:
        """Row numbers of this rank, a list a micro-batch, in the step that begins with row `first_row`."""
        rows_per_round = self.micro_batch_size * self.dp_size
        offsets = [
            first_row + round_index * rows_per_round + self.dp_rank * self.micro_batch_size
            for round_index in range(self.accumulation_steps)
        ]
        return [list(range(offset, offset + self.micro_batch_size)) for offset in offsets]


@dataclass(frozen=True)
class RowOrigin:
    """What a row is made of, to be named when a step goes wrong. Row `row` (from 0) of the bucket directory `bucket`.

    `categories` has an entry a document; `sources` too, `file:line`, or none where an older dataset does not say.
    """

    bucket: Path
    row: int
    categories: list[str]
    sources: list[str]


class BatchReader:
    """Reads the micro-batches of a step. What no row is left for is blank: padding without labels teaches nothing.

    With `masks_documents` the first token of every document carries no label: no other document is there to predict it.
    """

    def __init__(
        self,
        bins: Bins,
        shape: Shape,
        seed: int,
        row_length: int,
        pad_id: int,
        end_row: int,
        masks_documents: bool = False,
    ) -> None:
        self._bins = bins
        self._shape = shape
        self._order = RowOrder([one.num_rows for one in bins.bins], seed)
        self._row_length = row_length
        self._pad_id = pad_id
        self._end_row = end_row
        self._masks_documents = masks_documents

    def steps_from(self, first_row: int) -> Iterator[list[Batch]]:
        """The micro-batches of every step, from the one that begins with row `first_row` to the end of the run."""
        for start in range(first_row, self._end_row, self._shape.rows_per_step):
            end = min(start + self._shape.rows_per_step, self._end_row)
            yield [self._batch(numbers, end) for numbers in self._shape.row_numbers(start)]

    def rows_of_step(self, first_row: int) -> list[int]:
        """Numbers of the rows that all ranks together read in the step that begins with `first_row`; no blank rows."""
        return list(range(first_row, min(first_row + self._shape.rows_per_step, self._end_row)))

    def origin(self, number: int) -> RowOrigin:
        """Where row `number` comes from, not a blank one. Safe beside a thread that reads batches."""
        bin_index, row_index = self._order.locate(number)
        opened = self._bins.bins[bin_index]
        categories = [self._bins.categories[index] for index in opened.row(row_index).document_categories]
        return RowOrigin(opened.path, row_index, categories, self._bins.sources(bin_index, row_index))

    def _batch(self, numbers: list[int], end: int) -> Batch:
        size = (len(numbers), self._row_length)
        input_ids = np.full(size, self._pad_id, dtype=np.int64)
        labels = np.full(size, IGNORED, dtype=np.int64)
        position_ids = np.tile(np.arange(self._row_length), (len(numbers), 1))  # of a blank row: all of it is padding
        categories = np.zeros(size, dtype=np.int64)
        row_ids = np.zeros(len(numbers), dtype=np.int64)
        for line, number in enumerate(numbers):
            if number < end:
                bin_index, row_index = self._order.locate(number)
                row = self._bins.bins[bin_index].row(row_index)
                row_ids[line] = self._order.row_id(bin_index, row_index)
                length = len(row.input_ids)
                input_ids[line, :length] = row.input_ids
                labels[line, :length] = row.labels
                position_ids[line] = positions(row.document_lengths, self._row_length)
                categories[line, :length] = np.repeat(row.document_categories, row.document_lengths)
        if self._masks_documents:
            labels[position_ids == 0] = IGNORED
        return Batch(
            torch.from_numpy(input_ids),
            torch.from_numpy(labels),
            torch.from_numpy(position_ids),
            torch.from_numpy(categories),
            document_borders(torch.from_numpy(position_ids)),
            torch.from_numpy(row_ids),
            numbers,
        )


def positions(document_lengths: NDArray[np.int64], row_length: int) -> NDArray[np.int64]:
    """Place of every token in its document, int64 [row_length]; what follows the documents is one more document."""
    lengths = np.append(document_lengths, row_length - document_lengths.sum())
    starts = np.cumsum(lengths) - lengths
    return np.arange(row_length) - np.repeat(starts, lengths)
