"""Rows for human eyes: batches of rows pass through, and each row is also written as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from data_tools.rows import RowBatch


def also_as_jsonl(
    batches: Iterable[RowBatch], path: Path, decode: Callable[[list[int]], str], category_names: list[str]
) -> Iterator[RowBatch]:
    """Yield the batches unchanged and write their rows to `path` (UTF-8).

    A line is `{"input_ids", "labels", "documents": [{"category", "tokens", "text"}]}`; `decode` turns ids into text.
    """
    with path.open("w", encoding="utf-8") as file:
        for batch in batches:
            last_token, last_piece = 0, 0
            for num_tokens, num_pieces in zip(batch.row_lengths, batch.row_pieces, strict=True):
                tokens = slice(last_token, last_token := last_token + num_tokens)
                pieces = slice(last_piece, last_piece := last_piece + num_pieces)
                row = _readable_row(batch, tokens, pieces, decode, category_names)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            yield batch


def _readable_row(
    batch: RowBatch, tokens: slice, pieces: slice, decode: Callable[[list[int]], str], category_names: list[str]
) -> dict[str, list]:
    lengths = batch.document_lengths[pieces]
    ids_of_pieces = np.split(batch.input_ids[tokens], np.cumsum(lengths)[:-1])
    categories = [category_names[index] for index in batch.document_categories[pieces]]
    return {
        "input_ids": batch.input_ids[tokens].tolist(),
        "labels": batch.labels[tokens].tolist(),
        "documents": [
            {"category": category, "tokens": len(ids), "text": decode(ids.tolist())}
            for category, ids in zip(categories, ids_of_pieces, strict=True)
        ],
    }
