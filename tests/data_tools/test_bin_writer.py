"""One bin: `datasets` reads what was written, and equal rows are equal bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import datasets
import numpy as np
import pytest

from data_tools.bin_writer import ARROW_NAME, loss_tokens_of_pieces, write_bin
from data_tools.rows import RowBatch
from data_tools.sources import SOURCES_NAME


def make_batch(dtype: type, top_id: int) -> RowBatch:
    """Two rows: pieces of 2 and 1 tokens, and a piece of 2."""
    return RowBatch(
        input_ids=np.array([1, top_id, 3, 4, 5], dtype),
        labels=np.array([-100, top_id, 3, -100, -100], np.int32),
        document_lengths=np.array([2, 1, 2], np.int32),
        document_categories=np.array([0, 2, 0], np.int32),
        document_files=np.array([0, 1, 1], np.int32),
        document_lines=np.array([7, 2**40, 1]),
        row_lengths=np.array([3, 2]),
        row_pieces=np.array([2, 1]),
    )


@pytest.mark.parametrize(("dtype", "top_id", "name"), [(np.uint16, 65535, "uint16"), (np.uint32, 69103, "uint32")])
def test_datasets_reads_the_rows_back(tmp_path: Path, dtype: type, top_id: int, name: str) -> None:
    written = write_bin(tmp_path / "bin", [make_batch(dtype, top_id)] * 2, np.dtype(dtype), 3, 20)
    loaded = datasets.load_from_disk(str(tmp_path / "bin"))
    first = {
        "input_ids": [1, top_id, 3],
        "labels": [-100, top_id, 3],
        "document_lengths": [2, 1],
        "document_categories": [0, 2],
    }
    second = {"input_ids": [4, 5], "labels": [-100, -100], "document_lengths": [2], "document_categories": [0]}
    assert list(loaded) == [first, second, first, second]
    assert loaded.features["input_ids"].feature.dtype == name
    assert loaded.features["labels"].feature.dtype == "int32"
    assert written.num_rows == 4
    assert written.tokens.tolist() == [8, 0, 2]
    assert written.loss_tokens.tolist() == [2, 0, 2]
    assert written.fill_histogram.tolist() == [0, 2, 2] + [0] * 17  # rows of 2 and 3 of 20 tokens


def test_a_bin_without_rows_is_a_dataset_without_rows(tmp_path: Path) -> None:
    written = write_bin(tmp_path / "bin", [], np.dtype(np.uint16), 2, 20)
    assert written.num_rows == 0
    assert written.tokens.tolist() == [0, 0]
    loaded = datasets.load_from_disk(str(tmp_path / "bin"))
    assert len(loaded) == 0
    assert loaded.column_names == ["input_ids", "labels", "document_lengths", "document_categories"]


def test_equal_rows_are_equal_bytes_and_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    hashes = [
        write_bin(tmp_path / name, [make_batch(np.uint16, 9)], np.dtype(np.uint16), 3, 20).sha256 for name in "ab"
    ]
    assert hashes[0] == hashes[1] == hashlib.sha256((tmp_path / "a" / ARROW_NAME).read_bytes()).hexdigest()
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [ARROW_NAME, "dataset_info.json", SOURCES_NAME, "state.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_other_rows_have_another_fingerprint(tmp_path: Path) -> None:
    """By which `datasets` would find a stale result of `map` in its cache."""
    for name, top_id in {"a": 8, "b": 9}.items():
        write_bin(tmp_path / name, [make_batch(np.uint16, top_id)], np.dtype(np.uint16), 3, 20)
    assert len({datasets.load_from_disk(str(tmp_path / name))._fingerprint for name in "ab"}) == 2


def test_a_bin_that_is_there_is_not_written_into(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        write_bin(tmp_path, [make_batch(np.uint16, 9)], np.dtype(np.uint16), 3, 20)
    assert not list(tmp_path.iterdir())


def test_full_rows_are_in_the_last_step_of_the_histogram(tmp_path: Path) -> None:
    written = write_bin(tmp_path / "bin", [make_batch(np.uint16, 9)], np.dtype(np.uint16), 3, 3)
    assert np.flatnonzero(written.fill_histogram).tolist() == [13, 19]  # 2 of 3 tokens, 3 of 3


def test_loss_tokens_are_counted_for_each_piece() -> None:
    assert loss_tokens_of_pieces(make_batch(np.uint16, 9)).tolist() == [1, 1, 0]
    assert loss_tokens_of_pieces(make_batch(np.uint16, 0)).tolist() == [1, 1, 0]  # id 0 is a label like any other
