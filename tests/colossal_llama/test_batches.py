"""The global row order and how a step's rows are shared, against counting by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import datasets
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.batch import Batch, joined
from colossal_llama.batches import BatchReader, RowOrder, Shape, positions
from colossal_llama.config import TrainConfig
from colossal_llama.division import accumulating
from data_tools.bins import open_bins

ROWS_PER_BIN = [5, 0, 9, 3]
ROW_LENGTH, PAD = 6, 0


def order_of(epoch: int, seed: int, rows_per_bin: list[int] = ROWS_PER_BIN) -> list[tuple[int, int]]:
    """(bin, row) of every row of an epoch."""
    order, total = RowOrder(rows_per_bin, seed), sum(rows_per_bin)
    return [order.locate(epoch * total + position) for position in range(total)]


@given(st.lists(st.integers(0, 20), min_size=1).filter(any), st.integers(0, 9), st.integers(0, 2**32))
def test_every_row_comes_once_an_epoch_bucket_after_bucket(rows_per_bin: list[int], epoch: int, seed: int) -> None:
    order = order_of(epoch, seed, rows_per_bin)
    assert sorted(order) == [(index, row) for index, rows in enumerate(rows_per_bin) for row in range(rows)]
    assert [index for index, _ in order] == sorted(index for index, _ in order)


def test_order_differs_between_epochs_seeds_and_bins_of_one_size() -> None:
    orders = [tuple(order_of(epoch, seed, [40])) for epoch in range(3) for seed in range(3)]
    assert len(set(orders)) == len(orders)
    two = order_of(0, 0, [40, 40])
    assert [row for _, row in two[:40]] != [row for _, row in two[40:]]


def test_another_thread_may_look_into_the_same_cache_between_any_two_lines() -> None:
    """One reads ahead, the other names the rows of a step."""
    expected = [RowOrder([40, 40], 3).locate(number) for number in range(80)]
    order = RowOrder([40, 40], 3)

    def look_elsewhere(frame: FrameType, _: str, __: Any) -> Any:
        if frame.f_code is RowOrder._permutation.__code__:
            order.locate(0)
        return look_elsewhere

    before = sys.gettrace()
    sys.settrace(look_elsewhere)
    try:
        found = [order.locate(number) for number in range(40, 80)]
    finally:
        sys.settrace(before)
    assert found == expected[40:]


def test_order_does_not_depend_on_what_was_asked_before() -> None:
    order = RowOrder(ROWS_PER_BIN, 3)
    numbers = [40, 0, 33, 17, 16, 1, 40, 50]
    assert [order.locate(n) for n in numbers] == [order_of(n // 17, 3)[n % 17] for n in numbers]


@given(micro=st.integers(1, 7), accumulation=st.integers(1, 6), dp_size=st.integers(1, 9), first=st.integers(0, 10**9))
def test_ranks_share_exactly_the_next_rows(micro: int, accumulation: int, dp_size: int, first: int) -> None:
    shapes = [Shape(micro, accumulation, dp_size, dp_rank) for dp_rank in range(dp_size)]
    per_rank = [shape.row_numbers(first) for shape in shapes]
    assert {shape.rows_per_step for shape in shapes} == {micro * accumulation * dp_size}
    assert {len(numbers) for rank in per_rank for numbers in rank} == {micro}
    assert {len(rank) for rank in per_rank} == {accumulation}
    together = sorted(number for rank in per_rank for numbers in rank for number in numbers)
    assert together == list(range(first, first + micro * accumulation * dp_size))


@given(
    micro=st.integers(1, 5), dp_size=st.integers(1, 5), global_batch_size=st.integers(1, 30), first=st.integers(0, 30)
)
def test_a_global_batch_is_read_once_by_any_number_of_ranks(
    micro: int, dp_size: int, global_batch_size: int, first: int
) -> None:
    config = TrainConfig(Path("m"), [Path("d")], micro_batch_size=micro, global_batch_size=global_batch_size)
    accumulation = accumulating(config, dp_size).accumulation_steps
    assert (accumulation - 1) * micro * dp_size < global_batch_size, "no round of micro-batches that is all blank"
    ends = [first + global_batch_size, first + 2 * global_batch_size]
    read: list[list[int]] = [[], []]
    for dp_rank in range(dp_size):
        shape = Shape(micro, accumulation, dp_size, dp_rank, global_batch_size)
        steps = steps_of(shape, first, ends[1])
        for step, rows in zip(steps, read, strict=True):
            assert len(step) == accumulation and all(len(batch.labels) == micro for batch in step)
            rows += [
                number
                for batch in step
                for number, row_id in zip(batch.row_numbers, batch.row_ids.tolist(), strict=True)
                if row_id
            ]
    assert [sorted(rows) for rows in read] == [list(range(first, ends[0])), list(range(*ends))]


def fake_bins() -> Any:
    """Bins whose row r of bin b holds r + 2 tokens (at most 6), all 100 * b + r + 1; its first label is masked.

    Its documents are the first token, of category b, and all others, of category b + 1.
    """

    def bin_of(index: int, num_rows: int) -> SimpleNamespace:
        def row(number: int) -> SimpleNamespace:
            ids = np.full(min(ROW_LENGTH, number + 2), 100 * index + number + 1, dtype=np.int64)
            return SimpleNamespace(
                input_ids=ids,
                labels=np.where(np.arange(len(ids)) == 0, -100, ids),
                document_lengths=np.array([1, len(ids) - 1]),
                document_categories=np.array([index, index + 1]),
            )

        return SimpleNamespace(num_rows=num_rows, row=row)

    return SimpleNamespace(bins=[bin_of(index, rows) for index, rows in enumerate(ROWS_PER_BIN)])


def steps_of(shape: Shape, first_row: int, end_row: int, masks_documents: bool = False) -> Iterator[list[Batch]]:
    """The steps over the fake bins."""
    return BatchReader(fake_bins(), shape, 7, ROW_LENGTH, PAD, end_row, masks_documents).steps_from(first_row)


def rows_of(steps: Iterator[list[Batch]]) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) row by row."""
    batches = [batch for step in steps for batch in step]
    return [pair for batch in batches for pair in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True)]


def test_rows_are_those_of_the_bins_padded_on_the_right_without_labels() -> None:
    rows = rows_of(steps_of(Shape(1, 1, 1, 0), 0, 17))
    expected = []
    for index, number in order_of(0, 7):
        length = min(ROW_LENGTH, number + 2)
        value = 100 * index + number + 1
        ids = [value] * length + [PAD] * (ROW_LENGTH - length)
        expected.append((ids, [-100] + [value] * (length - 1) + [-100] * (ROW_LENGTH - length)))
    assert rows == expected
    batch = next(steps_of(Shape(2, 1, 1, 0), 0, 17))[0]
    assert batch.input_ids.shape == (2, ROW_LENGTH)
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 40), micro=st.integers(1, 4), accumulation=st.integers(1, 3), dp_size=st.integers(1, 3))
def test_any_first_row_gives_the_tail_and_blank_rows_bear_no_label(
    first: int, micro: int, accumulation: int, dp_size: int
) -> None:
    end_row = 40
    whole = rows_of(steps_of(Shape(1, 1, 1, 0), 0, end_row))
    readers = [steps_of(Shape(micro, accumulation, dp_size, rank), first, end_row) for rank in range(dp_size)]
    rows: list[tuple[list[int], list[int]]] = []
    for steps in zip(*readers, strict=True):  # every rank has as many steps
        for micro_batches in zip(*steps, strict=True):
            rows += rows_of(iter([list(micro_batches)]))
    assert rows[: end_row - first] == whole[first:]
    blank = rows[end_row - first :]
    assert len(blank) == -(end_row - first) % (micro * accumulation * dp_size)
    assert all(labels == [-100] * ROW_LENGTH and ids == [PAD] * ROW_LENGTH for ids, labels in blank)


def test_positions_restart_and_categories_follow_the_documents() -> None:
    batches = [batch for step in steps_of(Shape(2, 1, 1, 0), 0, 17, masks_documents=True) for batch in step]
    order = [*order_of(0, 7), None]
    assert [number for batch in batches for number in batch.row_numbers] == list(range(18))
    for batch in batches:
        for line, number in enumerate(batch.row_numbers):
            place = order[number]
            length = min(ROW_LENGTH, place[1] + 2) if place else 0
            index = place[0] if place else 0
            documents = [1, length - 1, ROW_LENGTH - length] if place else [ROW_LENGTH]
            categories = [index] + [index + 1] * (length - 1) if place else []
            labels = batch.labels[line].tolist()
            assert batch.position_ids[line].tolist() == [place for size in documents for place in range(size)]
            assert batch.categories[line].tolist() == categories + [0] * (ROW_LENGTH - length)
            assert (
                labels
                == [-100, -100, *batch.input_ids[line, 2:length].tolist(), *[-100] * (ROW_LENGTH - length)][:ROW_LENGTH]
            )
        assert batch.position_ids.dtype == batch.categories.dtype == torch.int64


@given(lengths=st.lists(st.integers(1, 9), max_size=6), padding=st.integers(0, 9))
def test_positions_are_those_of_counting(lengths: list[int], padding: int) -> None:
    found = positions(np.array(lengths, np.int64), sum(lengths) + padding)
    assert found.tolist() == [place for size in [*lengths, padding] for place in range(size)]


def test_joined_rows_are_all_rows_in_order() -> None:
    step = next(steps_of(Shape(2, 3, 1, 0), 0, 17))
    whole = next(steps_of(Shape(6, 1, 1, 0), 0, 17))[0]
    assert all(
        torch.equal(value, getattr(whole, name)) if isinstance(value, torch.Tensor) else value == whole.row_numbers
        for name, value in vars(joined(step)).items()
    )


@given(first=st.integers(0, 40), micro=st.integers(1, 4), dp_size=st.integers(1, 3))
def test_rows_of_a_step_are_those_that_the_ranks_read_but_blank_ones(first: int, micro: int, dp_size: int) -> None:
    readers = [
        BatchReader(fake_bins(), Shape(micro, 2, dp_size, rank), 7, ROW_LENGTH, PAD, 41) for rank in range(dp_size)
    ]
    read = [number for reader in readers for batch in next(reader.steps_from(first)) for number in batch.row_numbers]
    for reader in readers:
        assert reader.rows_of_step(first) == sorted(number for number in read if number < 41)


def test_origin_is_the_bucket_the_row_and_what_is_in_it(tiny_bins_dir: Path) -> None:
    bins = open_bins([tiny_bins_dir])
    end_row = bins.num_rows + 3  # into the second epoch
    reader = BatchReader(bins, Shape(1, 1, 1, 0), 7, bins.max_length, PAD, end_row)
    for (batch,) in reader.steps_from(0):
        origin = reader.origin(batch.row_numbers[0])
        row = datasets.load_from_disk(str(origin.bucket))[origin.row]
        assert batch.input_ids[0, : len(row["input_ids"])].tolist() == row["input_ids"]
        names = json.loads((tiny_bins_dir / "manifest.json").read_text())["category_names"]
        assert origin.categories == [names[index] for index in row["document_categories"]]
        for source, category in zip(origin.sources, origin.categories, strict=True):
            path, _, line = source.rpartition(":")
            assert json.loads(Path(path).read_text().splitlines()[int(line) - 1])["category"] == category
