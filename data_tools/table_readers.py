"""Tables: a CSV or Parquet file comes in, a record or a refusal for each row goes out.

The columns are the fields of a document, and only those that a document has are read. A table without the text column
(and, in Parquet, without messages) is refused as a whole.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.fields import CHAT_FIELDS, Reading, ReadOptions, category_of, document_of, is_unicode
from data_tools.json_readers import INVALID_UTF8
from data_tools.records import Record, Refusal
from data_tools.streams import BUFFER_BYTES, DAMAGED_FILE, OVER_LONG, TRUNCATED_FILE, Piece

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS_PER_BATCH = 256
PARQUET_MAGIC = b"PAR1"
NOT_A_PARQUET_FILE = "not_a_parquet_file"
INVALID_CSV = "invalid_csv"
RAGGED_ROW = "ragged_row"

# halves of surrogate pairs, which decoding never makes, stand for what text cannot hold
NUL_MARK = "\ud800"  # the csv module of Python 3.10 refuses NUL itself
OVER_LONG_MARK = "\ud801"
INVALID_UTF8_MARK = "\ud802"


class _CsvText:
    """Lines as the text that `csv.reader` takes; ends at a damage and keeps it."""

    def __init__(self, lines: Iterable[Piece]) -> None:
        self._lines = lines
        self.row_places: list[tuple[int, int]] = []  # of the lines of the current row
        self.damage: Piece | None = None

    def __iter__(self) -> Iterator[str]:
        for number, offset, data in self._lines:
            self.row_places.append((number, offset))
            if isinstance(data, bytes):
                yield data.decode("utf-8", "surrogateescape").replace("\0", NUL_MARK)
            elif data == OVER_LONG:
                yield OVER_LONG_MARK
            else:
                self.damage = (number, offset, data)


def read_csv(lines: Iterable[Piece], reading: Reading) -> Iterator[Record | Refusal]:
    """The document of each row below the header; cells are separated by commas. Blank lines are no rows.

    Its place is that of its first line. Where a quote leaves a cell open for longer than `max_document_bytes`, or
    until the file ends, the cell is refused; after that reading goes on with the next line, as if it had been closed.
    """
    csv.field_size_limit(reading.options.max_document_bytes)
    header: list[str] = []
    for number, offset, row in _csv_rows(_CsvText(lines)):
        if isinstance(row, str):
            yield Refusal(reading.file, number, offset, row, None)
        elif header:
            yield _document_of_row(header, row, reading, (number, offset))
        elif reading.options.text_field in row:
            header = row
        else:
            yield Refusal(reading.file, number, offset, f"missing_{reading.options.text_field}", None)
            return


def _csv_rows(text: _CsvText) -> Iterator[tuple[int, int, list[str] | str]]:
    """The place of each row, and its cells or the reason why there are none; a damage is the last."""
    rows = csv.reader(text, strict=True)
    while True:
        text.row_places.clear()
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            if text.damage is not None:
                break  # the row that the damage has cut
            yield *text.row_places[0], OVER_LONG if "field larger" in str(error) else INVALID_CSV
            continue
        if row:
            yield *text.row_places[0], row
    if text.damage is not None:
        yield text.damage  # type: ignore[misc]  # its third is a reason


def _document_of_row(header: list[str], row: list[str], reading: Reading, place: tuple[int, int]) -> Record | Refusal:
    options = reading.options
    cells = dict(zip(header, row, strict=False))
    names = (options.text_field, options.source_field, options.category_field)
    fields = {name: cells[name].replace(NUL_MARK, "\0") for name in names if name in cells}
    reason = None
    if any(OVER_LONG_MARK in cell for cell in row):
        reason = OVER_LONG
    elif len(row) != len(header):
        reason = RAGGED_ROW
    elif not all(is_unicode(cell) for cell in fields.values()):
        reason = INVALID_UTF8
    if reason is not None:
        return Refusal(reading.file, *place, reason, category_of(fields, options))
    return document_of(fields, reading, *place)


def read_parquet(path: str, reading: Reading) -> Iterator[Record | Refusal]:
    """The document of each row; `line_number` is the row, counted from 1. A few rows are in memory at a time.

    Raises OSError for what the machine refuses, never for damage.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    options, file = reading
    row_number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as table:
            for fields in _rows_of(table, options):
                row_number += 1
                if any(value is INVALID_UTF8_MARK for value in fields.values()):
                    yield Refusal(file, row_number, None, INVALID_UTF8, category_of(fields, options))
                else:
                    yield document_of(fields, reading, row_number, None)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield Refusal(file, row_number + 1, None, _parquet_damage(path), None)


def _rows_of(table: pq.ParquetFile, options: ReadOptions) -> Iterator[dict[str, Any]]:
    """The fields of each row; a table without a column to make documents of is one row without fields."""
    names = (options.text_field, options.source_field, options.category_field, *CHAT_FIELDS)
    columns = [name for name in dict.fromkeys(names) if name in table.schema_arrow.names]
    if not {options.text_field, *CHAT_FIELDS} & set(columns):
        yield {}
        return
    for batch in table.iter_batches(ROWS_PER_BATCH, columns=columns):
        values = [_values(column) for column in batch.columns]
        for row in zip(*values, strict=True):
            yield dict(zip(batch.schema.names, row, strict=True))


def _values(column: pa.Array) -> list[Any]:
    """The cells as Python sees them; INVALID_UTF8_MARK for text that is no UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return INVALID_UTF8_MARK


def _parquet_damage(path: str) -> str:
    """Why a file cannot be read as Parquet: its first and last four bytes tell."""
    content = Path(path)
    with content.open("rb") as file:
        head = file.read(len(PARQUET_MAGIC))
        file.seek(-min(len(PARQUET_MAGIC), content.stat().st_size), os.SEEK_END)
        tail = file.read()
    if head != PARQUET_MAGIC:
        return NOT_A_PARQUET_FILE if head else TRUNCATED_FILE
    return DAMAGED_FILE if tail == PARQUET_MAGIC else TRUNCATED_FILE
