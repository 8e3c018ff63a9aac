"""All encoded documents: the records of finished parts come in, arrays over every document go out.

About 60 bytes a document are in memory; the ids stay on the disk until a bucket is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    loss; `text_bytes` and `text_characters` are of the text that bears loss.
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

    def __len__(self) -> int:
        return len(self.hash)


def load_documents(cache_dir: Path, records: Sequence[PartRecord], category_names: Sequence[str]) -> Documents:
    """The documents of all parts, in the order of the parts (at least one document)."""
    rank = {name: index for index, name in enumerate(category_names)}
    chunks: list[ChunkFile] = []
    columns: list[dict[str, np.ndarray]] = []
    for record in records:
        ranks = np.array([rank[name] for name in record["category_names"]], np.int64)
        for chunk in record["chunks"]:
            path = cache_dir / record["key"] / chunk["name"]
            read = read_columns(path, SMALL_COLUMNS)
            columns.append(read | {"category": ranks[read["category"]]})
            chunks.append(ChunkFile(path, np.array(chunk["batch_documents"], np.int64)))
    sizes = [len(column["hash"]) for column in columns]
    return Documents(
        chunks=chunks,
        category_names=list(category_names),
        chunk=np.repeat(np.arange(len(chunks), dtype=np.int32), sizes),
        place=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        **{name: np.concatenate([column[name] for column in columns]) for name in SMALL_COLUMNS},
    )
