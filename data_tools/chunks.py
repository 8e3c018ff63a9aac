"""Encoded documents on the disk: a chunk comes in sorted, its columns or chosen documents come back out.

A chunk is an Arrow file compressed with zstd. Its documents come sorted by content hash and lie in batches of about
BATCH_TOKENS, so that a range of hashes, which is what a bucket is mostly made of, lies in few neighbouring batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_tools.encode import Encoded, gathered

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_TOKENS = 2**16
COMPRESSION = "zstd"
SMALL_COLUMNS = ("hash", "category", "length", "loss_tokens", "first_loss", "text_bytes", "text_characters")
HIGH_BITS = "tokens_high"  # of ids beyond 16 bits, apart: nearly all are alike, and the rest compresses better alone
PLACE_COLUMNS = ("span", "line_number", "byte_offset")


@dataclass(frozen=True)
class Facts:
    """What is known of each document beside its ids; [documents] arrays, `category` and `span` are
    indices into the names and spans of the part.

    `byte_offset` is -1 where a file has none. `sketch` is [documents, values] uint16, of 0 values if none is wanted.
    """

    hash: np.ndarray
    category: np.ndarray
    text_bytes: np.ndarray
    text_characters: np.ndarray
    span: np.ndarray
    line_number: np.ndarray
    byte_offset: np.ndarray
    sketch: np.ndarray


def smallest_dtype(num_ids: int) -> np.dtype:
    """The smallest unsigned integer that holds the ids of a vocabulary: uint16 up to 65,536 ids, uint32 above."""
    return np.dtype(np.uint16 if num_ids <= 2**16 else np.uint32)


def write_chunk(path: Path, facts: Facts, encoded: Encoded, dtype: np.dtype) -> list[int]:
    """Write the documents, which are sorted by hash; gives the number of documents of each batch."""
    import pyarrow as pa

    table = _table(facts, encoded, dtype)
    borders = _batch_borders(encoded.lengths)
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec(COMPRESSION, compression_level=1), use_threads=False)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for first, last in zip(borders[:-1], borders[1:], strict=True):
            writer.write_batch(table.slice(first, last - first))
    return np.diff(borders).tolist()


def _batch_borders(lengths: np.ndarray) -> list[int]:
    """0, ..., documents: a batch ends where it has reached BATCH_TOKENS."""
    batch = np.cumsum(lengths) // BATCH_TOKENS
    inner = np.flatnonzero(np.diff(batch)) + 1
    return [0, *inner.tolist(), len(lengths)]


def _table(facts: Facts, encoded: Encoded, dtype: np.dtype) -> pa.RecordBatch:
    import pyarrow as pa

    num_documents = len(encoded.lengths)
    loss_of_span = encoded.spans[1::2] - encoded.spans[0::2]
    document_of_span = np.repeat(np.arange(num_documents), encoded.num_spans)
    loss_tokens = np.bincount(document_of_span, loss_of_span, minlength=num_documents)
    columns = {
        "hash": plain_array(facts.hash),
        "category": plain_array(facts.category.astype(np.int32)),
        "length": plain_array(encoded.lengths.astype(np.int32)),
        "loss_tokens": plain_array(loss_tokens.astype(np.int32)),
        "first_loss": plain_array(_first_loss(encoded).astype(np.int32)),
        "text_bytes": plain_array(facts.text_bytes.astype(np.int32)),
        "text_characters": plain_array(facts.text_characters.astype(np.int32)),
        "span": plain_array(facts.span.astype(np.int32)),
        "line_number": plain_array(facts.line_number),
        "byte_offset": plain_array(facts.byte_offset),
        "tokens": list_array(encoded.tokens.astype(np.uint16), encoded.lengths),
        "loss_spans": list_array(encoded.spans.astype(np.int32), 2 * encoded.num_spans),
    }
    if dtype.itemsize > 2:
        columns[HIGH_BITS] = list_array((encoded.tokens >> 16).astype(np.uint16), encoded.lengths)
    if facts.sketch.shape[1]:
        flat = plain_array(np.ascontiguousarray(facts.sketch).reshape(-1))
        columns["sketch"] = pa.FixedSizeListArray.from_arrays(flat, facts.sketch.shape[1])
    return pa.RecordBatch.from_pydict(columns)


def _first_loss(encoded: Encoded) -> np.ndarray:
    """[documents]: place of the first token that bears loss; the length where none does."""
    first_span = np.cumsum(encoded.num_spans) - encoded.num_spans
    has_loss = encoded.num_spans > 0
    first = encoded.lengths.copy()
    first[has_loss] = encoded.spans[2 * first_span[has_loss]]
    return first


def plain_array(values: np.ndarray) -> pa.Array:
    """An Arrow array around the same memory. `pyarrow.array` would import pandas for it, a third of a second."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def plain_values(array: pa.Array) -> np.ndarray:
    """The values of an Arrow array of numbers without nulls. Its own `to_numpy` would import pandas, too."""
    dtype = np.dtype(str(array.type))
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def list_array(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """A list column: `lengths` [rows] of the values each."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(plain_array(offsets), plain_array(values))


def read_columns(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Whole columns of a chunk, [documents] each (`sketch`: [documents, values]); nothing else is read."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        table = _open(source, names).read_all()
    columns = {name: table[name].combine_chunks() for name in names}
    return {
        name: plain_values(column.flatten()).reshape(len(column), -1) if name == "sketch" else plain_values(column)
        for name, column in columns.items()
    }


def read_documents(path: Path, batch_documents: np.ndarray, places: np.ndarray) -> Encoded:
    """The documents at `places` (ascending, from 0) of a chunk, in this order; `tokens` are uint16 or uint32."""
    import pyarrow as pa

    ends = np.cumsum(batch_documents)
    batch_of_place = np.searchsorted(ends, places, side="right")
    parts: list[tuple[np.ndarray, ...]] = []
    with pa.memory_map(str(path)) as source:
        reader = _open(source, ("tokens", "loss_spans", HIGH_BITS))
        batches, first = np.unique(batch_of_place, return_index=True)
        for batch, chosen in zip(batches.tolist(), np.split(places, first[1:]), strict=True):
            columns = reader.get_batch(batch)
            chosen = chosen - (ends[batch] - batch_documents[batch])
            tokens, lengths = _chosen(columns["tokens"], chosen)
            if HIGH_BITS in columns.schema.names:
                high, _ = _chosen(columns[HIGH_BITS], chosen)
                tokens = tokens | (high.astype(np.uint32) << 16)
            parts.append((tokens, lengths, *_chosen(columns["loss_spans"], chosen)))
    tokens, lengths, spans, num_borders = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Encoded(tokens, lengths, spans.astype(np.int64), num_borders // 2, np.ones(len(places), bool))


def _open(source: pa.NativeFile, names: tuple[str, ...]) -> Any:
    import pyarrow as pa

    schema = pa.ipc.open_file(source).schema
    indices = [schema.get_field_index(name) for name in names if name in schema.names]
    return pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=indices, use_threads=False))


def _chosen(column: pa.ListArray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values end to end, number of values of each) of some lists."""
    offsets = plain_values(column.offsets).astype(np.int64)
    lengths = offsets[places + 1] - offsets[places]
    return gathered(plain_values(column.values), offsets[places], lengths), lengths
