"""Encoded documents on the disk: a chunk comes in sorted, its columns or chosen documents come back out.

A chunk is an Arrow file compressed with zstd. Its documents are sorted by content hash and lie in batches of about
BATCH_TOKENS, so that a range of hashes, which is what a bucket is mostly made of, lies in few neighbouring batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_tools.encode import Encoded, ragged_index

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_TOKENS = 2**16
COMPRESSION = "zstd"
SMALL_COLUMNS = ("hash", "category", "length", "loss_tokens", "text_bytes", "text_characters")
PLACE_COLUMNS = ("span", "line_number", "byte_offset")


@dataclass(frozen=True)
class Facts:
    """What is known of each document beside its ids; [documents] arrays, `category` and `span` are
    indices into the names and spans of the part.

    `byte_offset` is -1 where a file has none. `sketch` is [documents, values] uint32, of 0 values if none is wanted.
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
    """Write the documents, sorted by hash; gives the number of documents of each batch."""
    import pyarrow as pa

    order = np.lexsort((facts.category, facts.hash))
    table = _table(facts, encoded, order, dtype)
    lengths = encoded.lengths[order]
    borders = _batch_borders(lengths)
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec(COMPRESSION, compression_level=1), use_threads=False)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for first, last in zip(borders[:-1], borders[1:], strict=True):
            writer.write_batch(table.slice(first, last - first).combine_chunks().to_batches()[0])
    return np.diff(borders).tolist()


def _batch_borders(lengths: np.ndarray) -> list[int]:
    """0, ..., documents: a batch ends where it has reached BATCH_TOKENS."""
    batch = np.cumsum(lengths) // BATCH_TOKENS
    inner = np.flatnonzero(np.diff(batch)) + 1
    return [0, *inner.tolist(), len(lengths)]


def _table(facts: Facts, encoded: Encoded, order: np.ndarray, dtype: np.dtype) -> pa.Table:
    import pyarrow as pa

    tokens = _reordered(encoded.tokens.astype(dtype, copy=False), encoded.lengths, order)
    spans = _reordered(encoded.spans.astype(np.int32), 2 * encoded.num_spans, order)
    loss_of_span = encoded.spans[1::2] - encoded.spans[0::2]
    document_of_span = np.repeat(np.arange(len(order)), encoded.num_spans)
    loss_tokens = np.bincount(document_of_span, loss_of_span, minlength=len(order)).astype(np.int32)
    columns: dict[str, Any] = {
        "hash": facts.hash[order],
        "category": facts.category[order].astype(np.int32),
        "length": encoded.lengths[order].astype(np.int32),
        "loss_tokens": loss_tokens[order],
        "text_bytes": facts.text_bytes[order].astype(np.int32),
        "text_characters": facts.text_characters[order].astype(np.int32),
        "span": facts.span[order].astype(np.int32),
        "line_number": facts.line_number[order],
        "byte_offset": facts.byte_offset[order],
        "tokens": tokens,
        "loss_spans": spans,
    }
    if facts.sketch.shape[1]:
        flat = pa.array(np.ascontiguousarray(facts.sketch[order]).reshape(-1))
        columns["sketch"] = pa.FixedSizeListArray.from_arrays(flat, facts.sketch.shape[1])
    return pa.table(columns)


def _reordered(values: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> pa.ListArray:
    """A list<...> column: the values of each document, documents in another order."""
    import pyarrow as pa

    starts = np.cumsum(lengths) - lengths
    offsets = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[ragged_index(starts[order], lengths[order])]))


def read_columns(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Whole columns of a chunk, [documents] each (`sketch`: [documents, values]); nothing else is read."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        table = _open(source, names).read_all()
    columns = {name: table[name].combine_chunks() for name in names}
    return {
        name: column.flatten().to_numpy().reshape(len(column), -1) if name == "sketch" else column.to_numpy()
        for name, column in columns.items()
    }


def read_documents(path: Path, batch_documents: np.ndarray, places: np.ndarray) -> Encoded:
    """The documents at `places` (ascending, from 0) of a chunk, in this order."""
    import pyarrow as pa

    ends = np.cumsum(batch_documents)
    batch_of_place = np.searchsorted(ends, places, side="right")
    parts: list[tuple[np.ndarray, ...]] = []
    with pa.memory_map(str(path)) as source:
        reader = _open(source, ("tokens", "loss_spans"))
        batches, first = np.unique(batch_of_place, return_index=True)
        for batch, chosen in zip(batches.tolist(), np.split(places, first[1:]), strict=True):
            columns = reader.get_batch(batch)
            chosen = chosen - (ends[batch] - batch_documents[batch])
            parts.append((*_chosen(columns["tokens"], chosen), *_chosen(columns["loss_spans"], chosen)))
    tokens, lengths, spans, num_borders = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Encoded(tokens, lengths, spans.astype(np.int64), num_borders // 2, np.ones(len(places), bool))


def _open(source: pa.NativeFile, names: tuple[str, ...]) -> Any:
    import pyarrow as pa

    schema = pa.ipc.open_file(source).schema
    indices = [schema.get_field_index(name) for name in names]
    return pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=indices, use_threads=False))


def _chosen(column: pa.ListArray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values end to end, number of values of each) of some lists."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    lengths = offsets[places + 1] - offsets[places]
    return column.values.to_numpy()[ragged_index(offsets[places], lengths)], lengths
