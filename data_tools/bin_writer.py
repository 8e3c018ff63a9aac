"""Writes one bin: batches of rows come in, a directory that `datasets.load_from_disk` reads goes out.

Columns: `input_ids` list<uint16 or uint32>, `labels` list<int32> (not shifted, -100 without loss), `document_lengths`
and `document_categories` list<int32>, one entry a piece. The files are written here rather than by `datasets`, whose
fingerprints and paths differ from run to run: equal rows give equal bytes in every file. Beside them `sources.arrow`
says where each piece was read, which is no property of the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_tools.chunks import list_array
from data_tools.encode import IGNORED_LABEL
from data_tools.manifest import WrittenBin
from data_tools.parts import file_digest
from data_tools.rows import RowBatch
from data_tools.sources import SOURCES_NAME, sources_writer

if TYPE_CHECKING:
    import pyarrow as pa

ARROW_NAME = "data-00000-of-00001.arrow"
FILL_STEPS = 20  # of the histogram of rows by fill


def write_bin(
    directory: Path, batches: Iterable[RowBatch], dtype: np.dtype, num_categories: int, max_length: int
) -> WrittenBin:
    """Write the rows to a new `directory`; ids have `dtype` (uint16 or uint32). No batch at all makes an empty bin."""
    import pyarrow as pa

    directory.mkdir(parents=True)
    schema = _schema(dtype)
    num_rows = 0
    tokens, loss_tokens = np.zeros((2, num_categories), np.int64)
    fill_histogram = np.zeros(FILL_STEPS, np.int64)
    with (
        pa.OSFile(str(directory / ARROW_NAME), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
        sources_writer(directory) as write_sources,
    ):
        for batch in batches:
            writer.write_batch(_record_batch(batch, schema))
            write_sources(batch)
            num_rows += len(batch.row_lengths)
            np.add.at(tokens, batch.document_categories, batch.document_lengths)
            np.add.at(loss_tokens, batch.document_categories, loss_tokens_of_pieces(batch))
            np.add.at(fill_histogram, (batch.row_lengths * FILL_STEPS - 1) // max_length, 1)
    sha256 = file_digest(directory / ARROW_NAME)
    write_state(directory, sha256)
    sources_sha256 = file_digest(directory / SOURCES_NAME)
    return WrittenBin(num_rows, tokens, loss_tokens, fill_histogram, sha256, sources_sha256)


def loss_tokens_of_pieces(batch: RowBatch) -> np.ndarray:
    """[pieces] int64: labels that bear loss."""
    first_token = np.cumsum(batch.document_lengths) - batch.document_lengths
    return np.add.reduceat(batch.labels != IGNORED_LABEL, first_token, dtype=np.int64)


def _schema(dtype: np.dtype) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        {
            "input_ids": pa.list_(pa.from_numpy_dtype(dtype)),
            "labels": pa.list_(pa.int32()),
            "document_lengths": pa.list_(pa.int32()),
            "document_categories": pa.list_(pa.int32()),
        }
    )


def _record_batch(batch: RowBatch, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [
        list_array(batch.input_ids, batch.row_lengths),
        list_array(batch.labels, batch.row_lengths),
        list_array(batch.document_lengths, batch.row_pieces),
        list_array(batch.document_categories, batch.row_pieces),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def write_state(directory: Path, sha256: str) -> None:
    """The two files beside the rows that `datasets` asks for. Features are left out: it reads them from the schema."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": ARROW_NAME}],
        "_fingerprint": sha256[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": "", "features": None, "homepage": "", "license": ""}
    for name, value in {"state.json": state, "dataset_info.json": info}.items():
        (directory / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
