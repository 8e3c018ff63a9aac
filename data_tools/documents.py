"""All encoded documents: the records of finished parts come in, arrays over every document go out.

About 70 bytes a document are in memory; the ids stay on the disk until a bucket is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_tools.chunks import SMALL_COLUMNS, read_columns
from data_tools.intake import PartRecord


@dataclass(frozen=True)
class ChunkFile:
    """A chunk on the disk; `batch_documents` [batches] int64."""

    path: Path
    batch_documents: np.ndarray


@dataclass(frozen=True)
class Documents:
    """Every document, chunk by chunk. Arrays are [documents].

    Document d is the one at `place[d]` of `chunks[chunk[d]]`. `hash` (uint64) is over its content, `category` (int64)
    indexes `category_names`. `length` and `loss_tokens` count tokens, `first_loss` those before the first that bears
    loss; `text_bytes` and `text_characters` are of the text that bears loss. It was read from line `line_number`
    (int64, from 1) of file number `file` (int32, in the order of the parts, which is that of `inputs.json`).
    """

    chunks: list[ChunkFile]
    category_names: list[str]
    chunk: np.ndarray
    place: np.ndarray
    hash: np.ndarray
    category: np.ndarray
    length: np.ndarray
    loss_tokens: np.ndarray
    first_loss: np.ndarray
    text_bytes: np.ndarray
    text_characters: np.ndarray
    file: np.ndarray
    line_number: np.ndarray

    def __len__(self) -> int:
        return len(self.hash)


class Numbered(NamedTuple):
    """The record of a part, and for each of its spans the lines of the file before it and the number of the file."""

    record: PartRecord
    lines_before: list[int]
    file_numbers: list[int]


def numbered(records: Sequence[PartRecord]) -> Iterator[Numbered]:
    """The records, in the order of the parts; files are numbered as they come."""
    lines: Counter[str] = Counter()
    number_of: dict[str, int] = {}
    for record in records:
        before = []
        for file, num_lines in zip(record["files"], record["num_lines"], strict=True):
            before.append(lines[file])
            lines[file] += num_lines
            number_of.setdefault(file, len(number_of))
        yield Numbered(record, before, [number_of[file] for file in record["files"]])


def load_documents(cache_dir: Path, records: Sequence[PartRecord], category_names: Sequence[str]) -> Documents:
    """The documents of all parts, in the order of the parts (at least one document)."""
    rank = {name: index for index, name in enumerate(category_names)}
    chunks: list[ChunkFile] = []
    columns: list[dict[str, np.ndarray]] = []
    for record, lines_before, file_numbers in numbered(records):
        ranks = np.array([rank[name] for name in record["category_names"]], np.int64)
        for chunk in record["chunks"]:
            path = cache_dir / record["key"] / chunk["name"]
            read = read_columns(path, (*SMALL_COLUMNS, "span", "line_number"))
            places = {
                "file": np.array(file_numbers, np.int32)[read["span"]],
                "line_number": read["line_number"] + np.array(lines_before)[read["span"]],
            }
            columns.append(read | {"category": ranks[read["category"]], **places})
            chunks.append(ChunkFile(path, np.array(chunk["batch_documents"], np.int64)))
    sizes = [len(column["hash"]) for column in columns]
    return Documents(
        chunks=chunks,
        category_names=list(category_names),
        chunk=np.repeat(np.arange(len(chunks), dtype=np.int32), sizes),
        place=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        **{
            name: np.concatenate([column[name] for column in columns])
            for name in (*SMALL_COLUMNS, "file", "line_number")
        },
    )
