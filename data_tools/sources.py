"""Where the rows of a bin were read: batches of rows come in, `sources.arrow` goes out; later `file:line` of a row.

Columns: `file` list<int32> and `line_number` list<int64>, a row a row and one entry a piece. `file` counts the files of
the dataset's `inputs.json`. It compresses to two or three bytes a piece. Rows do not depend on it, so it is in no hash
of the manifest: the same text under other names gives the same bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.chunks import COMPRESSION, list_array
from data_tools.inputs import read_inputs
from data_tools.rows import RowBatch
from tokenizer_tools.command import UserError

SOURCES_NAME = "sources.arrow"


@contextmanager
def sources_writer(directory: Path) -> Iterator[Callable[[RowBatch], None]]:
    """Yield a function that takes the batches of a bin, in their order."""
    import pyarrow as pa

    schema = pa.schema({"file": pa.list_(pa.int32()), "line_number": pa.list_(pa.int64())})
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec(COMPRESSION, compression_level=1), use_threads=False)

    def write(batch: RowBatch) -> None:
        columns = [
            list_array(batch.document_files, batch.row_pieces),
            list_array(batch.document_lines, batch.row_pieces),
        ]
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))

    with (
        pa.OSFile(str(directory / SOURCES_NAME), "wb") as sink,
        pa.ipc.new_stream(sink, schema, options=options) as writer,
    ):
        yield write


class Sources:
    """The sources of one bin, all in memory; none where an older version wrote the dataset or a file of it is gone."""

    def __init__(self, directory: Path) -> None:
        self._table, self._files = _read(directory)

    def of_row(self, index: int) -> list[str]:
        """`file:line` of each piece of row `index`, or nothing."""
        if self._table is None or index >= self._table.num_rows:  # a file that was cut off may read as a shorter one
            return []
        row = self._table.slice(index, 1).to_pylist()[0]
        return [f"{self._files[file]}:{line}" for file, line in zip(row["file"], row["line_number"], strict=True)]


def _read(directory: Path) -> tuple[Any, list[str]]:
    """(the table of `sources.arrow`, the names of its files); no table where either of the two cannot be read."""
    import pyarrow as pa

    try:
        files = list(read_inputs(directory.parent))
        with pa.OSFile(str(directory / SOURCES_NAME)) as source, pa.ipc.open_stream(source) as reader:
            return reader.read_all(), files
    except (pa.ArrowInvalid, OSError, UserError):
        return None, []
